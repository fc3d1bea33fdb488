"""vLLM's serving metrics, with the steps whose tokens the model keeps until their generation ends.

AsyncLLM counts what it receives: a step for each message, and a time between tokens for each output. Tokens of a whole
answer arrive in one output, and their steps beside it, as counts (tritonlive/wire/kept_tokens.py).
"""

from typing import Any

from openai_frontend.vllm_seam import IterationStats, OutputProcessor, StatLoggerManager
from tritonlive.wire.kept_tokens import KeptStep, KeptTokens


class StepStatistics(StatLoggerManager):
    """vLLM's loggers of statistics. `arrived` precedes each step, `record` (called by AsyncLLM) follows it."""

    _kept: KeptTokens | None = None  # of the step that AsyncLLM processes
    _timestamp = 0.0
    _num_released = 0

    def arrived(self, kept: KeptTokens | None, timestamp: float, processor: OutputProcessor) -> None:
        """Note what travels with the step that AsyncLLM processes next.

        timestamp: of the step, seconds of the engine's clock. processor: knows when requests got their last token.
        """
        self._kept, self._timestamp, self._num_released = kept, timestamp, 0
        if kept is None:
            return
        for request_id, (made_at, num_tokens) in kept.released.items():
            state = processor.request_states.get(request_id)
            if state is not None and state.stats is not None:  # otherwise it was aborted, and vLLM ignores the output
                state.stats.last_token_ts = made_at
                self._num_released += num_tokens

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int | None = None
    ) -> None:
        """See StatLoggerManager. Records the kept steps first, each as vLLM records a step."""
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept.is_counted:
                iteration_stats = None
            for step in kept.steps:
                if iteration_stats is not None and step.timestamp == self._timestamp:
                    count(step, iteration_stats)
                else:
                    super().record(None, count(step, IterationStats()), None, engine_idx)
            if iteration_stats is not None:
                iteration_stats.num_generation_tokens -= self._num_released
        super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)


def count(step: KeptStep, stats: IterationStats) -> IterationStats:
    """Add a kept step's tokens and latencies to `stats`; returns `stats`."""
    stats.num_generation_tokens += step.num_tokens
    for latency, num_generations in step.latencies.items():
        stats.inter_token_latencies_iter += [latency] * num_generations
    return stats
