"""Between vLLM's Rust front end and the replicas: requests one way, steps the other.

The Rust side sees an engine for each replica, which its metrics tell apart. It balances by load alone; but a replica
that is fenced, or serves other weights than the fleet, must get nothing. So the replica is chosen here, as for the
other front end (replicas.py), whichever engine a request was meant for.
"""

import asyncio
import json
import logging
from collections.abc import Callable

import msgspec

from openai_frontend.engine_info import EngineInfo
from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas.placed_generation import PlacedGeneration
from openai_frontend.replicas.placement import Placement
from openai_frontend.replicas.replica import Replica
from openai_frontend.replicas.replicas import Replicas
from openai_frontend.rust.engine_sockets import MessageType
from openai_frontend.rust.steps import RawStep, decode_steps, failed_step, refused_call, request_id_of

logger = logging.getLogger(__name__)

Send = Callable[[bytes], None]
NOT_SERVED = "is not served on this port; use the FastAPI front end's, with the control key"


class Bridge:
    """The replicas, as the engines of one Rust process after another."""

    def __init__(self, urls: list[str], engine_info: EngineInfo, key: str | None) -> None:
        """urls: host:port of each replica's gRPC endpoint. key: one that the models accept, where they ask for one."""
        self.replicas = Replicas(
            [Replica(index, url, engine_info, self, decode_steps, key) for index, url in enumerate(urls)]
        )
        self.placement = Placement(self.replicas, self.fail)
        self._send: Send | None = None

    def attach(self, send: Send | None) -> None:
        """Send steps with `send` from now on, and give up the generations of the process before."""
        self._send = send
        self.placement.abort([request_id for each in self.replicas.members for request_id in each.generations])

    # ---- from the Rust side -------------------------------------------------------------------------------------

    def take(self, engine: int, frames: list[bytes]) -> None:
        """Take a message for an engine. Raises msgspec.MsgspecError, and ValueError for one of another version."""
        kind, *payloads = frames
        (payload,) = payloads
        match kind:
            case MessageType.ADD:
                self._place(PlacedGeneration(request_id_of(payload), payload))
            case MessageType.ABORT:
                self.placement.abort(msgspec.msgpack.decode(payload, type=list[str]))
            case MessageType.UTILITY:
                _, call_id, method, *_ = msgspec.msgpack.decode(payload)
                logger.warning("refused the engine call %s: it %s", method, NOT_SERVED)
                self._answer(refused_call(call_id, engine, f"{method} {NOT_SERVED}"))
            case _:
                raise ValueError(f"a message of the unknown type {kind!r}")

    def _place(self, generation: PlacedGeneration) -> None:
        if self.replicas.eligible():
            self.placement.place(generation)
        else:  # a push may have healed a replica a moment ago
            task = asyncio.create_task(self._place_when_asked(generation))
            task.add_done_callback(lambda done: done.result())

    async def _place_when_asked(self, generation: PlacedGeneration) -> None:
        try:
            await self.replicas.require()
        except EngineUnavailable as error:
            self.fail(generation.request_id, error)
        else:
            self.placement.place(generation)

    def fail(self, request_id: str, error: TritonError) -> None:
        """End a generation. The protocol has no field for a reason, so that the client gets a 500 without one."""
        logger.warning("the request %s failed: %s", request_id, error)
        self._answer(failed_step(request_id, 0))

    def _answer(self, step: bytes) -> None:
        if self._send is not None:
            self._send(step)

    # ---- from the replicas (ReplicaListener) --------------------------------------------------------------------

    def received(self, replica: Replica, step: RawStep) -> None:
        # An announcement of a commit is neither a request's step nor statistics: the Rust side would take it for a
        # message of another version, and give up its engines.
        if step.outputs or step.scheduler_stats is not None:
            self._answer(step.of_engine(replica.index))

    def failed(self, replica: Replica, generation: PlacedGeneration, error: TritonError) -> None:
        self.placement.failed(replica, generation, error)

    def committed(self, version: str) -> None:
        self.replicas.committed = version

    def adapters_changed(self, replica: Replica, announcement: str) -> str:
        """Acknowledge: this port serves no adapters, and holds no push of one up."""
        return json.loads(announcement)["serial"]
