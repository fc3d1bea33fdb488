"""An engine core that makes tokens for free, where vLLM would start one in a process of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.metrics.stats import SchedulerStats

TOKEN = 1
WEIGHT_VERSION = "default"


class FreeCore(EngineCoreClient):
    """The engine core as AsyncLLM sees it: a step gives every running request one token, until it has `max_tokens`."""

    def __init__(self, turn: Callable[[], Awaitable[None]]) -> None:
        """`turn` is awaited before each step; without a wait in it nothing else on the loop would get a turn."""
        self.resources = SimpleNamespace(engine_dead=False, engine_manager=None)  # AsyncLLM and Engine look here
        self.engine_ranks_managed = [0]
        self._turn = turn
        self._left: dict[str, int] = {}  # tokens that a running request has to come
        self._has_work = asyncio.Event()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Raises ValueError for a request without max_tokens, which would never end."""
        if request.sampling_params is None or not request.sampling_params.max_tokens:
            raise ValueError(f"{request.request_id} has no max_tokens")
        self._left[request.request_id] = request.sampling_params.max_tokens
        self._has_work.set()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._left.pop(request_id, None)

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next step, as soon as there is something to do."""
        await self._turn()
        while not self._left:
            self._has_work.clear()
            await self._has_work.wait()
        return self._step()

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return ("generate",)

    async def get_weight_version_async(self) -> str:
        return WEIGHT_VERSION

    def dp_engines_running(self) -> bool:
        return False

    def shutdown(self, timeout: float | None = None) -> None:
        """There is no process to end."""

    def _step(self) -> EngineCoreOutputs:
        left = {request_id: tokens - 1 for request_id, tokens in self._left.items()}
        self._left = {request_id: tokens for request_id, tokens in left.items() if tokens}
        return EngineCoreOutputs(
            outputs=[
                EngineCoreOutput(request_id, [TOKEN], finish_reason=None if tokens else FinishReason.LENGTH)
                for request_id, tokens in left.items()
            ],
            # A step of vLLM's brings them, too.
            scheduler_stats=SchedulerStats(num_running_reqs=len(left)),
            weight_version=WEIGHT_VERSION,
        )
