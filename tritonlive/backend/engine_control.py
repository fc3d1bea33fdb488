"""Control operations about the engine: what it is, whether it generates, its caches and its memory."""

from collections.abc import Callable
from typing import Any

import psutil
from vllm.version import __version__ as vllm_version

from tritonlive.wire.machine import machine_id
from tritonlive.wire.operations.engine import (
    Describe,
    EngineDescription,
    FlushGenerations,
    FullyAwake,
    GetHealth,
    GetIsPaused,
    GetIsSleeping,
    GetStatus,
    Health,
    IsPaused,
    IsSleeping,
    Nothing,
    Ok,
    PauseGeneration,
    PauseStatus,
    ResetEncoderCache,
    ResetMmCache,
    ResetPrefixCache,
    ResumeGeneration,
    Score,
    Scores,
    Sleep,
    WakeUp,
)
from tritonlive.wire.states import State

from .engine import Engine
from .generation.scoring import prompt_logprobs
from .weights.weights import Weights


class EngineControl:
    """Handlers: every public method runs the operation of its name (tritonlive/wire/operations/engine.py)."""

    def __init__(self, engine: Engine, weights: Weights, flush_generations: Callable[[], None]) -> None:
        self._engine = engine
        self._weights = weights
        self._flush_generations = flush_generations

    async def describe(self, _arguments: Describe) -> EngineDescription:
        config = self._engine.llm.vllm_config
        model = config.model_config
        transfer = config.weight_transfer_config
        served = model.served_model_name
        return {
            "vllm_version": vllm_version,
            "engine_argv": self._engine.argv,
            "model": model.model,
            "served_model_name": [served] if isinstance(served, str) else list(served or ()),
            "supported_tasks": sorted(self._engine.supported_tasks),
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
            "num_gpu_blocks": config.cache_config.num_gpu_blocks,
            "block_size": config.cache_config.block_size,
            "kv_cache_size_tokens": config.cache_config.kv_cache_size_tokens,
            "world_size": config.parallel_config.world_size,
            "world_size_across_dp": config.parallel_config.world_size_across_dp,
            "weight_version": await self._weights.version(),
            "weight_transfer_backend": transfer.backend if transfer is not None else None,
            "started_at": self._engine.started_at,
            "num_restarts": self._engine.num_restarts,
        }

    async def health(self, _arguments: GetHealth) -> Health:
        self._weights.replica.check_can_generate()
        await self._weights.version()
        return {"healthy": True}

    async def status(self, _arguments: GetStatus) -> dict[str, Any]:
        arguments = self._engine.arguments
        if not self._engine.is_running:
            return {
                "state": State.RESTARTING,
                "weight_version": None,
                "reason": "the engine died",
                "last_update": None,
            }
        config = self._engine.llm.vllm_config
        replica = self._weights.replica
        state = State.PAUSED if replica.is_paused and replica.state is State.SERVING else replica.state
        last = self._weights.history.last
        return {
            "state": state,
            "weight_version": await self._weights.version(),
            "reason": replica.reason,
            "newest_numbered": self._weights.updates.versions.newest_numbered,
            "kept_versions": self._weights.updates.kept,
            "model": arguments.model,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "world_size": config.parallel_config.world_size_across_dp,
            "weight_transfer_backend": self._weights.backend,
            "machine": machine_id(),
            "host_memory_available": psutil.virtual_memory().available,
            "lease": self._weights.lease.describe(),
            "last_update": last.result() if last is not None else None,
        }

    async def pause_generation(self, arguments: PauseGeneration) -> PauseStatus:
        await self._weights.pause(arguments.mode, clear_cache=arguments.clear_cache)
        return {"status": "paused"}

    async def resume_generation(self, _arguments: ResumeGeneration) -> PauseStatus:
        await self._weights.resume()
        return {"status": "resumed"}

    async def is_paused(self, _arguments: GetIsPaused) -> IsPaused:
        return {"is_paused": await self._engine.llm.is_paused()}

    async def flush_generations(self, _arguments: FlushGenerations) -> Nothing:
        self._flush_generations()
        return {}

    async def score(self, arguments: Score) -> Scores:
        self._weights.replica.check_can_generate()
        return {
            "logprobs": await prompt_logprobs(self._engine, arguments.prompts),
            "weight_version": await self._weights.version(),
        }

    async def reset_prefix_cache(self, arguments: ResetPrefixCache) -> Ok:
        options = (arguments.reset_running_requests, arguments.reset_connector)
        return {"ok": await self._engine.llm.reset_prefix_cache(*options)}

    async def reset_mm_cache(self, _arguments: ResetMmCache) -> Nothing:
        await self._engine.llm.reset_mm_cache()
        return {}

    async def reset_encoder_cache(self, _arguments: ResetEncoderCache) -> Nothing:
        await self._engine.llm.reset_encoder_cache()
        return {}

    async def sleep(self, arguments: Sleep) -> Nothing:
        await self._weights.sleep(arguments.level, arguments.mode)
        return {}

    async def wake_up(self, arguments: WakeUp) -> FullyAwake:
        tags = None if arguments.tags is None else [str(tag) for tag in arguments.tags]
        return {"fully_awake": await self._weights.wake_up(tags)}

    async def is_sleeping(self, _arguments: GetIsSleeping) -> IsSleeping:
        return {"is_sleeping": await self._engine.llm.is_sleeping()}
