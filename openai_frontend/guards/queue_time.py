"""Gives a request that ended before it was scheduled a queue time, and no other times.

vLLM computes the times of an ended request from its stamps (vllm.v1.metrics.stats, `update_from_finished_request`).
A request that fails in the queue, for example because its grammar cannot be compiled, was never scheduled. The missing
stamp counts as 0: the queue time is minus the clock's age, and prefill and inference take that long.
Upstream: vllm-project/vllm#49135, in 0.32.0 as before; a version that skips missing stamps makes this unnecessary.
"""

from typing import Any

from openai_frontend.vllm_seam import OutputProcessor


class QueueTimeProcessor(OutputProcessor):
    """vLLM's output processor. Stamps that a request lacks at its end are set to its end."""

    def _update_stats_from_finished(self, req_state: Any, finish_reason: Any, iteration_stats: Any) -> None:
        stamps = req_state.stats
        if stamps is not None and stamps.scheduled_ts == 0.0:
            stamps.scheduled_ts = stamps.last_token_ts
            stamps.queued_ts = stamps.queued_ts or stamps.last_token_ts
        super()._update_stats_from_finished(req_state, finish_reason, iteration_stats)
