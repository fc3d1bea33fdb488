"""One replica: a Triton server with our model, as this front-end process sees it."""

import asyncio
from typing import Any, Protocol

from openai_frontend.engine_info import EngineInfo, IncompatibleServer
from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas.connection import TritonConnection
from openai_frontend.replicas.health import HEALTH_TIMEOUT_S, ReplicaHealth
from openai_frontend.replicas.placed_generation import PlacedGeneration
from openai_frontend.replicas.replica_channel import ChannelCallbacks, ReplicaChannel, reason_of
from openai_frontend.replicas.step import DecodeSteps, Step
from tritonlive.wire.error_codes import has_model_ended
from tritonlive.wire.versions import FIRST_VERSION

CONNECT_TIMEOUT_S = 10.0
RECONNECT_INTERVAL_S = 0.5
HEALTH_INTERVAL_S = 0.5
# After this the connection is given up: a Triton on another machine can go without closing its sockets.
SILENCE_TIMEOUT_S = 45.0
# The model has deadlines of its own for every operation; this one is for a model that does not answer at all.
CONTROL_TIMEOUT_S = 900.0


class ReplicaListener(Protocol):
    """Called by replicas."""

    def received(self, replica: "Replica", step: Any) -> None:
        """A step of the engine brought tokens or statistics. It is what `decode_steps` yielded."""

    def failed(self, replica: "Replica", generation: PlacedGeneration, error: TritonError) -> None:
        """The replica refused a generation, or was lost while it ran."""

    def committed(self, version: str) -> None:
        """Weights of this version went live."""

    def adapters_changed(self, replica: "Replica", announcement: str) -> str:
        """The replica announced which LoRA adapters it serves from now on; returns the announcement's serial."""


class Replica:
    """Call `connect` once, then run `stay_connected` in a task of its own, until `close`."""

    def __init__(
        self,
        index: int,
        url: str,
        expected: EngineInfo,
        listener: ReplicaListener,
        decode_steps: DecodeSteps,
        key: str | None = None,
    ) -> None:
        """url: host:port of Triton's gRPC endpoint. expected: what the front end's serving layer was built from.

        decode_steps: decodes the engine's steps for the listener.
        key: one that the model accepts, where it asks for one.
        """
        self.index = index
        self.url = url
        self.engine_info = expected  # the replica's own, once it has been reached
        self.weight_version: str | None = None
        self.generations: dict[str, PlacedGeneration] = {}
        self._expected = expected
        self._listener = listener
        self._decode_steps = decode_steps
        self._key = key
        self._channel: ReplicaChannel | None = None
        self._health = ReplicaHealth(url)

    @property
    def is_connected(self) -> bool:
        return self._channel is not None and self._channel.is_open

    @property
    def unavailable_reason(self) -> str | None:
        """Why it cannot generate now, whatever its weights; None if it can."""
        if self._channel is not None and self._channel.closed.done():
            return self._channel.closed.result()
        return self._health.unavailable_reason

    @property
    def num_running(self) -> int:
        """Number of this process's generations at the replica."""
        return len(self.generations)

    @property
    def is_slow(self) -> bool:
        """Whether it has owed an answer for so long that another replica is the better choice."""
        return self._health.is_slow

    # ---- the connection -----------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Try once; afterwards `is_connected`, or `unavailable_reason` says why not."""
        try:
            connection = await TritonConnection.connect(self.url, CONNECT_TIMEOUT_S, self._key)
            try:
                await self._open_channel(connection)
            except BaseException:
                self._channel = None
                await connection.close()
                raise
        except TritonError as error:
            self._health.note(reason_of(error))
        except IncompatibleServer as error:
            self._health.note(str(error))

    async def stay_connected(self) -> None:
        """Connect again whenever the connection is lost, until cancelled."""
        while True:
            if self._channel is None:
                await self.connect()
            if self._channel is None:
                await asyncio.sleep(RECONNECT_INTERVAL_S)
            else:
                await self._until_lost(self._channel)

    async def close(self) -> None:
        """Disconnect. Triton cancels the running generations; the listener is not called."""
        self.generations.clear()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.connection.close()

    async def _open_channel(self, connection: TritonConnection) -> None:
        """Raises TritonError, and IncompatibleServer for another model than the serving layer was built for."""
        callbacks = ChannelCallbacks(
            self._received, self._failed, lambda announcement: self._listener.adapters_changed(self, announcement)
        )
        channel = await ReplicaChannel.open(connection, callbacks, self._decode_steps, CONNECT_TIMEOUT_S)
        described = await connection.control("describe", {}, None, CONNECT_TIMEOUT_S)
        engine_info = EngineInfo.of(described)
        if (difference := self._expected.difference(engine_info)) is not None:
            raise IncompatibleServer(difference)
        self.engine_info = engine_info
        before, self.weight_version = self.weight_version, described["weight_version"]
        if before not in (None, self.weight_version) and self.weight_version != FIRST_VERSION:
            self._listener.committed(described["weight_version"])  # while this process was not connected
        self._channel = channel
        await self.ask_health(CONNECT_TIMEOUT_S)

    async def _until_lost(self, channel: ReplicaChannel) -> None:
        asking = asyncio.create_task(self._keep_asking(channel), name=f"health-{self.url}")
        try:
            await asyncio.wait([channel.closed])
        finally:
            asking.cancel()
            self._health.stop_asking()
        reason = channel.closed.result()
        self._health.note(reason)
        for request_id in list(self.generations):
            self._failed(request_id, EngineUnavailable(reason))
        self._channel = None
        await channel.connection.close()

    # ---- its health ---------------------------------------------------------------------------------------------

    async def ask_health(self, timeout_s: float = HEALTH_TIMEOUT_S) -> None:
        """Ask the model, and keep the answer as `unavailable_reason`.

        Raises EngineUnavailable when no answer comes within `timeout_s`.
        """
        channel = self._channel
        unavailable_reason: str | None = None
        try:
            await self.control("health", {}, None, timeout_s)
        except EngineUnavailable:
            raise
        except TritonError as error:  # fenced, dirty or starting again; it answers, so the connection is well
            unavailable_reason = str(error)
            if channel is not None and has_model_ended(unavailable_reason):
                channel.close(f"the model's process in Triton has ended: {unavailable_reason}")
        if channel is self._channel:
            self._health.note(unavailable_reason)

    async def _keep_asking(self, channel: ReplicaChannel) -> None:
        # The condition is needed beside the cancellation: an error that comes at the same moment swallows that.
        while channel.is_open:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            self._health.ask()
            try:
                await self.ask_health(SILENCE_TIMEOUT_S)
                unavailable_reason = self._health.unavailable_reason
            except EngineUnavailable as error:
                unavailable_reason = error.reason
            if unavailable_reason is not None and channel.is_open and await self._is_over(channel):
                channel.close(unavailable_reason)
            self._health.stop_asking()

    async def _is_over(self, channel: ReplicaChannel) -> bool:
        """Whether a channel whose model cannot generate will stay useless."""
        try:
            # Triton waits for what runs on the channel of a model that it unloads, then for the channel itself.
            if not await channel.connection.has_model(HEALTH_TIMEOUT_S):
                return not self.generations
            # An engine that loads, or waits in a broadcast, is silent. The model's process answers this without it.
            await channel.connection.control("describe", {}, None, HEALTH_TIMEOUT_S)
        except EngineUnavailable:
            return True
        except TritonError:
            pass  # an answer, too
        return False

    # ---- requests to it -----------------------------------------------------------------------------------------

    def generate(self, generation: PlacedGeneration) -> None:
        """Start a generation whose payload is set. The listener receives its outcome."""
        self.generations[generation.request_id] = generation
        try:
            if self._channel is None or generation.payload is None:
                raise EngineUnavailable(self.unavailable_reason or "the request has begun elsewhere")
            self._channel.generate(generation.request_id, generation.payload)
        except EngineUnavailable as error:
            self._failed(generation.request_id, error)

    def abort(self, request_ids: list[str]) -> None:
        """Give up those of the generations that run here."""
        here = [request_id for request_id in request_ids if self.generations.pop(request_id, None) is not None]
        if self._channel is not None:
            self._channel.abort(here)

    async def control(
        self,
        operation: str,
        arguments: dict[str, Any],
        key: str | None,
        timeout_s: float = CONTROL_TIMEOUT_S,
        payload: bytes | None = None,
    ) -> Any:
        """Run a control operation. Raises TritonError, EngineUnavailable without a connection or an answer."""
        if self._channel is None or not self._channel.is_open:
            raise EngineUnavailable(self.unavailable_reason or "the connection is lost")
        return await self._channel.connection.control(operation, arguments, key, timeout_s, payload)

    # ---- messages from it ---------------------------------------------------------------------------------------

    def _received(self, step: Step) -> None:
        if step.weight_version is not None and not step.outputs and step.scheduler_stats is None:
            # The announcement of a commit (relay.py), not a step: a step may arrive late.
            self.weight_version = step.weight_version
            self._listener.committed(step.weight_version)
        for output in step.outputs:
            generation = self.generations.get(output.request_id)
            if generation is not None and output.finish_reason is not None:
                del self.generations[output.request_id]
            elif generation is not None:
                generation.payload = None
        self._listener.received(self, step)

    def _failed(self, request_id: str, error: TritonError) -> None:
        generation = self.generations.pop(request_id, None)
        if generation is None:
            return
        if error.is_unavailable:
            self._health.note(reason_of(error))  # earlier than the next answer about its health
        self._listener.failed(self, generation, error)
