"""Control operations that concern all replicas: what is asked of each, and what their answers make together."""

import asyncio
from contextlib import suppress
from typing import Any

from openai_frontend.errors import SeveralReplicas, TritonError
from openai_frontend.replicas.replica import CONNECT_TIMEOUT_S, Replica
from openai_frontend.replicas.replicas import Replicas
from tritonlive.wire.states import State


class FleetControl:
    """Runs operations with the control key."""

    def __init__(self, replicas: Replicas[Replica], key: str | None) -> None:
        self._replicas = replicas
        self._key = key

    async def one(self, operation: str, arguments: dict[str, Any], payload: bytes | None = None) -> Any:
        """At the one replica. Raises TritonError, and SeveralReplicas if there is more than one."""
        members = self._replicas.members
        if len(members) > 1:
            raise SeveralReplicas(operation, [replica.url for replica in members])
        return await members[0].control(operation, arguments, self._key, payload=payload)

    async def all(self, operation: str, arguments: dict[str, Any]) -> list[Any]:
        """At every replica at once. When all have ended, raises the first TritonError; one not there has one, too."""
        members = self._replicas.members
        calls = [replica.control(operation, arguments, self._key) for replica in members]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for replica, result in zip(members, results, strict=True):
            if isinstance(result, TritonError) and len(members) > 1:
                raise TritonError(f"{replica.url}: {result}", result.http_status)
            if isinstance(result, BaseException):
                raise result
        return results

    async def statuses(self) -> dict[str, Any]:
        """Each replica's own status, and what this front end makes of it."""
        replicas = self._replicas
        answers = await asyncio.gather(*(self._status(replica) for replica in replicas.members))
        return {
            "weight_version": replicas.weight_version,
            "replicas": [
                {
                    "url": replica.url,
                    **answer,
                    "num_running": replica.num_running,
                    "left_out": replicas.why_left_out(replica),
                }
                for replica, answer in zip(replicas.members, answers, strict=True)
            ],
        }

    async def ask_versions(self) -> None:
        """Renew what is known of the weights of the replicas that are there."""
        await asyncio.gather(*(ask_version(replica) for replica in self._replicas.members))

    async def _status(self, replica: Replica) -> dict[str, Any]:
        try:
            return await replica.control("status", {}, self._key, CONNECT_TIMEOUT_S)
        except TritonError as error:
            return {"state": State.UNAVAILABLE, "weight_version": replica.weight_version, "reason": str(error)}


async def ask_version(replica: Replica) -> None:
    with suppress(TritonError):  # then it is not the one that answers
        replica.weight_version = (await replica.control("describe", {}, None, CONNECT_TIMEOUT_S))["weight_version"]
