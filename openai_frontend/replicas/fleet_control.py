"""Runs control operations at the replicas behind one front end, and combines their answers.

The table of operations says which replicas an operation is for (`Scope`).
"""

import asyncio
from contextlib import suppress
from typing import Any

from openai_frontend.errors import SeveralReplicas, TritonError
from openai_frontend.replicas.replica import CONNECT_TIMEOUT_S, Replica
from openai_frontend.replicas.replicas import Replicas
from tritonlive.wire.operation import Scope
from tritonlive.wire.operations import OPERATIONS
from tritonlive.wire.operations.engine import Describe, GetStatus
from tritonlive.wire.states import State


class FleetControl:
    """Runs operations with the control key."""

    def __init__(self, replicas: Replicas[Replica], key: str | None) -> None:
        self._replicas = replicas
        self._key = key

    async def one(self, operation: str, arguments: dict[str, Any], payload: bytes | None = None) -> Any:
        """Run it at the only replica. Raises TritonError, and SeveralReplicas if there are more."""
        require_scope(operation, Scope.ONE, Scope.EACH)
        members = self._replicas.members
        if len(members) > 1:
            raise SeveralReplicas(operation, [replica.url for replica in members])
        return await members[0].control(operation, arguments, self._key, payload=payload)

    async def all(self, operation: str, arguments: dict[str, Any]) -> list[Any]:
        """Run it at every replica at once, and return their answers.

        Raises the first TritonError, which names its replica, once all have ended. A replica that is not there has one.
        """
        require_scope(operation, Scope.ALL)
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
        """The status of each replica, and why this front end leaves it out, if it does."""
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
        """Ask every replica for its weight version."""
        await asyncio.gather(*(ask_version(replica) for replica in self._replicas.members))

    async def _status(self, replica: Replica) -> dict[str, Any]:
        try:
            return await replica.control(GetStatus.operation.name, {}, self._key, CONNECT_TIMEOUT_S)
        except TritonError as error:
            return {"state": State.UNAVAILABLE, "weight_version": replica.weight_version, "reason": str(error)}


def require_scope(operation: str, *scopes: Scope) -> None:
    """Raises ValueError for an operation that the table gives another scope."""
    if (scope := OPERATIONS[operation].scope) not in scopes:
        raise ValueError(f"{operation} is for {scope} of the replicas, not for {' or '.join(scopes)}")


async def ask_version(replica: Replica) -> None:
    """Note the replica's weight version; one that does not answer keeps the version it had."""
    with suppress(TritonError):
        description = await replica.control(Describe.operation.name, {}, None, CONNECT_TIMEOUT_S)
        replica.weight_version = description["weight_version"]
