"""vLLM's process boundary to its engine core, laid through Triton, to one replica or several.

vLLM's AsyncLLM renders, detokenizes and streams in one process and talks to the engine core in another process, in
EngineCoreRequest and EngineCoreOutputs structs. This client speaks the same structs to the model in Triton
(tritonlive/backend/generation/relay.py is the other end), so that everything above it is vLLM's, unchanged. Each
generation goes to one replica; the outputs of all replicas come back in one queue.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import SimpleNamespace
from typing import cast

from openai_frontend.adapters import PushedAdapters
from openai_frontend.engine_info import EngineInfo
from openai_frontend.errors import TritonError
from openai_frontend.replicas.placed_generation import PlacedGeneration
from openai_frontend.replicas.replica import Replica
from openai_frontend.replicas.replicas import Replicas
from openai_frontend.vllm_seam import EngineCoreClient, EngineCoreOutputs, EngineCoreRequest, SupportedTask, encoder

FLUSH_TIMEOUT_S = 10.0

OnFailure = Callable[[str, TritonError], None]

# The replica for all generations of the request that is being added.
_pinned: ContextVar[Replica | None] = ContextVar("pinned_replica", default=None)


class TritonCoreClient(EngineCoreClient):
    """The engine core as AsyncLLM sees it."""

    def __init__(self, urls: Sequence[str], engine_info: EngineInfo, on_failure: OnFailure) -> None:
        """`on_failure(request_id, error)` is called for a generation that no replica took, or that one gave up."""
        self.replicas = Replicas([Replica(index, url, engine_info, self) for index, url in enumerate(urls)])
        self.adapters = PushedAdapters()
        self.engine_ranks_managed = list(range(len(urls)))
        self.resources = SimpleNamespace(engine_dead=False)  # AsyncLLM reads this attribute
        self._on_failure = on_failure
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._encoder = encoder()

    @contextmanager
    def pinned_replica(self) -> Iterator[None]:
        """Within, all requests go to one replica: n answers to a prompt share the prefix that is cached there."""
        token = _pinned.set(self.replicas.pick())
        try:
            yield
        finally:
            _pinned.reset(token)

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Never waits and never raises: a request that no replica takes fails like a refused one."""
        generation = PlacedGeneration(request.request_id, cast(bytes, self._encoder.encode(request)[0]))
        replica = _pinned.get()
        if replica is None or replica.unavailable_reason is not None:
            replica = self.replicas.pick()
        if replica is None:
            self._on_failure(request.request_id, self.replicas.unavailable())
        else:
            replica.generate(generation)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.abort_now(request_ids)

    def abort_now(self, request_ids: list[str]) -> None:
        """Give up generations, wherever they run."""
        for replica in self.replicas.members:
            replica.abort(request_ids)

    async def send_kept_tokens(self) -> None:
        """Have the replicas send the tokens that they keep until a generation ends; returns when they are here."""
        for replica in self.replicas.members:
            if replica.generations:
                with suppress(TritonError):  # a lost replica has nothing to send
                    await replica.control("flush_generations", {}, None, FLUSH_TIMEOUT_S)
        while not self._outputs.empty():  # noqa: ASYNC110 - the output handler runs meanwhile
            await asyncio.sleep(0)

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return ("generate",)

    def dp_engines_running(self) -> bool:
        return False

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing to do: the engines belong to Triton, and TritonEngineClient.close disconnects."""

    # ---- reports of the replicas --------------------------------------------------------------------------------

    def received(self, replica: Replica, outputs: EngineCoreOutputs) -> None:
        outputs.engine_index = replica.index  # the label of vLLM's own metrics
        self._outputs.put_nowait(outputs)

    def failed(self, replica: Replica, generation: PlacedGeneration, error: TritonError) -> None:
        """Try another replica once, if nothing was generated yet; else the client gets the error."""
        if error.is_unavailable and generation.payload is not None and not generation.is_second_try:
            other = self.replicas.pick(other_than=replica)
            if other is not None:
                generation.is_second_try = True
                other.generate(generation)
                return
        self._on_failure(generation.request_id, error)

    def committed(self, version: str) -> None:
        self.replicas.committed = version

    def adapters_changed(self, replica: Replica, announcement: str) -> str:
        return self.adapters.take(announcement, replica.index)
