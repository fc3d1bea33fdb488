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

from vllm.exceptions import VLLMValidationError

from openai_frontend.adapters import PushedAdapters
from openai_frontend.engine_info import EngineInfo
from openai_frontend.errors import TritonError
from openai_frontend.guards.encoding import encode_request
from openai_frontend.replicas.placed_generation import PlacedGeneration
from openai_frontend.replicas.placement import Placement
from openai_frontend.replicas.replica import Replica
from openai_frontend.replicas.replicas import Replicas
from openai_frontend.vllm_seam import (
    EngineCoreClient,
    EngineCoreOutputs,
    EngineCoreRequest,
    MsgpackDecoder,
    RelayedOutputs,
    SupportedTask,
    encoder,
)
from tritonlive.wire.kept_tokens import KeptTokens

FLUSH_TIMEOUT_S = 10.0

OnFailure = Callable[[str, TritonError | VLLMValidationError], None]
OnStep = Callable[[KeptTokens | None, float], None]
"""Called with what travels beside a step, and with the step's time, before AsyncLLM gets the step."""

# The replica for all generations of the request that is being added.
_pinned: ContextVar[Replica | None] = ContextVar("pinned_replica", default=None)


class TritonCoreClient(EngineCoreClient):
    """The engine core as AsyncLLM sees it."""

    def __init__(
        self, urls: Sequence[str], engine_info: EngineInfo, on_failure: OnFailure, key: str | None = None
    ) -> None:
        """`on_failure(request_id, error)` is called for a generation that no replica took, or that one gave up.

        key: one that the models accept, where they ask for one.
        """
        decode = MsgpackDecoder(list[RelayedOutputs]).decode
        members = [Replica(index, url, engine_info, self, decode, key) for index, url in enumerate(urls)]
        self.placement = Placement(Replicas(members), on_failure)
        self.adapters = PushedAdapters()
        self.engine_ranks_managed = list(range(len(urls)))
        self.resources = SimpleNamespace(engine_dead=False)  # AsyncLLM reads this attribute
        self._supported_tasks = cast(tuple[SupportedTask, ...], tuple(engine_info.supported_tasks))
        self._on_failure = on_failure
        self.on_step: OnStep = lambda kept, timestamp: None
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._encoder = encoder()

    @property
    def replicas(self) -> Replicas[Replica]:
        return self.placement.replicas

    @contextmanager
    def pinned_replica(self) -> Iterator[None]:
        """Within, all requests go to one replica: n answers to a prompt share the prefix that is cached there."""
        token = _pinned.set(self.replicas.pick())
        try:
            yield
        finally:
            _pinned.reset(token)

    async def get_output_async(self) -> EngineCoreOutputs:
        outputs = await self._outputs.get()
        self.on_step(outputs.kept if isinstance(outputs, RelayedOutputs) else None, outputs.timestamp)
        return outputs

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Never waits and never raises: a request that has no encoding, or no replica, fails like a refused one."""
        try:
            generation = PlacedGeneration(request.request_id, encode_request(self._encoder, request))
        except VLLMValidationError as error:
            self._on_failure(request.request_id, error)
            return
        self.placement.place(generation, preferred=_pinned.get())

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.abort_now(request_ids)

    def abort_now(self, request_ids: list[str]) -> None:
        """Give up generations, wherever they run."""
        self.placement.abort(request_ids)

    async def send_kept_tokens(self) -> None:
        """Have the replicas send the tokens that they keep until a generation ends; returns when they are here."""
        for replica in self.replicas.members:
            if replica.generations:
                with suppress(TritonError):  # a lost replica has nothing to send
                    await replica.control("flush_generations", {}, None, FLUSH_TIMEOUT_S)
        while not self._outputs.empty():  # noqa: ASYNC110 - the output handler runs meanwhile
            await asyncio.sleep(0)

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return self._supported_tasks

    def dp_engines_running(self) -> bool:
        return False

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing to do: the engines belong to Triton, and TritonEngineClient.close disconnects."""

    # ---- reports of the replicas --------------------------------------------------------------------------------

    def received(self, replica: Replica, step: EngineCoreOutputs) -> None:
        step.engine_index = replica.index  # the label of vLLM's own metrics
        self._outputs.put_nowait(step)

    def failed(self, replica: Replica, generation: PlacedGeneration, error: TritonError) -> None:
        self.placement.failed(replica, generation, error)

    def committed(self, version: str) -> None:
        self.replicas.committed = version

    def adapters_changed(self, replica: Replica, announcement: str) -> str:
        return self.adapters.take(announcement, replica.index)
