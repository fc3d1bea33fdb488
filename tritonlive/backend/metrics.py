"""The model's statistics, as metrics on Triton's /metrics.

The engine's loop counts, which is cheap. Publishing sends a message to Triton's process, so the writer's thread does it
a few times a second.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import triton_python_backend_utils as pb_utils

from .vllm_seam.messages import EngineCoreOutputs, SchedulerStats

# Fields of a step's statistics that the next step replaces. Fields that vLLM adds are counters until named here.
GAUGES = frozenset(
    {
        *("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "num_kv_fetch_reqs_by_stage"),
        *("step_counter", "current_wave", "kv_cache_usage", "waiting_lora_adapters", "running_lora_adapters"),
    }
)
read_counts = attrgetter(*(field.name for field in fields(SchedulerStats) if field.name not in GAUGES))
NO_COUNTS = read_counts(SchedulerStats())


def has_counts(stats: SchedulerStats | None) -> bool:
    """Whether a step's statistics carry counters, which must be added up (hits of the prefix cache)."""
    return stats is not None and read_counts(stats) != NO_COUNTS


@dataclass
class Statistics:
    """Counts and gauges of the engine. Field names are metric names without their prefix."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_cache_usage_perc: float = 0.0
    engine_steps_total: int = 0
    generation_tokens_total: int = 0
    prompt_tokens_total: int = 0
    prompt_tokens_cached_total: int = 0
    engine_restarts_total: int = 0

    def observe(self, outputs: EngineCoreOutputs) -> EngineCoreOutputs:
        """Count all outputs of a step; returns the step unchanged."""
        stats = outputs.scheduler_stats
        if stats is not None:
            self.num_requests_running = stats.num_running_reqs
            self.num_requests_waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
            self.kv_cache_usage_perc = stats.kv_cache_usage
        self.engine_steps_total += bool(outputs.outputs)
        for output in outputs.outputs:
            self.generation_tokens_total += len(output.new_token_ids)
            if output.prefill_stats is not None:
                self.prompt_tokens_total += output.prefill_stats.num_prompt_tokens
                self.prompt_tokens_cached_total += output.prefill_stats.num_cached_tokens
        return outputs

    def idle(self) -> None:
        """Reset the gauges when nothing runs: an idle engine reports nothing."""
        self.num_requests_running = self.num_requests_waiting = 0
        self.kv_cache_usage_perc = 0.0

    def engine_died(self, _reason: str) -> None:
        """Count a death of the engine."""
        self.idle()
        self.engine_restarts_total += 1


DESCRIPTIONS = {
    "num_requests_running": "Requests the engine is generating for.",
    "num_requests_waiting": "Requests queued in the engine.",
    "kv_cache_usage_perc": "Part of the KV cache in use, 0 to 1.",
    "engine_steps_total": "Engine steps that produced tokens.",
    "generation_tokens_total": "Tokens generated.",
    "prompt_tokens_total": "Prompt tokens of requests whose prefill has ended.",
    "prompt_tokens_cached_total": "Prompt tokens found in the prefix cache.",
    "engine_restarts_total": "Times the engine died and was started again.",
}


@dataclass
class SendingStatistics:
    """Delays and queues on the way to the clients. Field names are metric names without their prefix."""

    event_loop_lag_max_seconds: float = 0.0
    response_queue_length: int = 0
    channel_messages_total: int = 0
    channel_steps_total: int = 0


BUILD_DESCRIPTIONS = {"build_info": "Always 1; the labels are the versions of tritonlive and vLLM."}


SENDING_DESCRIPTIONS = {
    "event_loop_lag_max_seconds": "Largest delay of the engine's event loop within the last 15 seconds.",
    "response_queue_length": "Jobs queued for the thread that sends responses.",
    "channel_messages_total": "Messages with engine steps sent to front ends.",
    "channel_steps_total": "Engine steps in these messages: usually one each, more when sending falls behind.",
}


WEIGHT_DESCRIPTIONS = {
    "weight_updates_committed_total": "Pushes and rollbacks that went live.",
    "weight_updates_unchanged_total": "Pushes of weights that were already served.",
    "weight_updates_failed_total": "Updates that failed.",
    "weight_updates_aborted_total": "Updates that were aborted: by the trainer, or because it was gone or too late.",
    "weight_bytes_total": "Bytes of weights that went live.",
    "weight_update_pause_seconds": "How long the last committed update paused generation.",
    "weight_update_load_seconds": "The part of the last pause in which the workers loaded.",
    "weight_update_seconds": "How long the last committed update took from start to commit.",
    "requests_stale": "Running requests that began with a version other than the one that serves now.",
}


class LabelledCounters:
    """Counters that differ in one label; `publish` increases those that grew."""

    def __init__(
        self, name: str, description: str, labels: Mapping[str, str], label: str, values: Iterable[str]
    ) -> None:
        kind = pb_utils.MetricFamily.COUNTER
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        self._metrics = {value: self._family.Metric(labels={**labels, label: value}) for value in values}
        self._published = dict.fromkeys(self._metrics, 0.0)

    def publish(self, counts: Mapping[str, float]) -> None:
        """Increase the counters to `counts`, by the label's values. Runs on the writer's thread."""
        for value, count in counts.items():
            if count != self._published[value]:
                self._metrics[value].increment(count - self._published[value])
                self._published[value] = count


class TritonMetrics:
    """Metrics registered with Triton; `publish` sends the values that changed."""

    def __init__(
        self,
        prefix: str,
        descriptions: Mapping[str, str],
        labels: Mapping[str, str],
        counters: tuple[str, ...] = ("_total",),
    ) -> None:
        """counters: how the names of counters end; all others are gauges."""
        self._counters = counters
        # Triton drops a metric when its family is collected, so the families are kept.
        self._families: list[Any] = []
        self._metrics: dict[str, Any] = {}
        self._published: dict[str, float] = {}
        for name, description in descriptions.items():
            kind = pb_utils.MetricFamily.COUNTER if name.endswith(counters) else pb_utils.MetricFamily.GAUGE
            family = pb_utils.MetricFamily(name=f"{prefix}{name}", description=description, kind=kind)
            self._families.append(family)
            self._metrics[name] = family.Metric(labels=dict(labels))

    def publish(self, values: Mapping[str, float]) -> None:
        """Set gauges and increase counters to `values`. Runs on the writer's thread."""
        for name, value in values.items():
            before = self._published.get(name, 0)
            if value == before:
                continue
            if name.endswith(self._counters):
                self._metrics[name].increment(value - before)
            else:
                self._metrics[name].set(value)
            self._published[name] = value
