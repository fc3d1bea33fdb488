"""An engine core that makes tokens without computing them. It replaces the engine core that vLLM would start."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.metrics.stats import SchedulerStats

TOKEN = 1


class FreeCore(EngineCoreClient):
    """An engine core client for AsyncLLM. A step gives every running request one token, until it has `max_tokens`."""

    def __init__(self, turn: Callable[[], Awaitable[None]]) -> None:
        """`turn` is awaited before each step. It must yield to the loop, because nothing else here does."""
        self.resources = SimpleNamespace(engine_dead=False, engine_manager=None)  # AsyncLLM and Engine read these
        self.engine_ranks_managed = [0]
        self._turn = turn
        self._left: dict[str, int] = {}  # remaining tokens of each running request
        self._has_work = asyncio.Event()
        self._weight_version = "default"

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
        """Wait for a running request and return the next step."""
        await self._turn()
        while not self._left:
            self._has_work.clear()
            await self._has_work.wait()
        return self._step()

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return ("generate",)

    async def get_weight_version_async(self) -> str:
        return self._weight_version

    async def set_weight_version_async(self, weight_version: str) -> None:
        self._weight_version = weight_version

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
            # vLLM's steps carry statistics, too.
            scheduler_stats=SchedulerStats(num_running_reqs=len(left)),
            weight_version=self._weight_version,
        )
