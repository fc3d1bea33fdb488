"""tritonlive/backend/metrics.py: every metric has a description, and changes reach Triton."""

from collections.abc import Mapping
from dataclasses import fields
from types import SimpleNamespace

import pytest

from tests.triton_stand_in import Metric
from tritonlive.backend import metrics
from tritonlive.backend.weights import history


def test_every_figure_is_described() -> None:
    for kind, descriptions in (
        (metrics.Statistics, metrics.DESCRIPTIONS),
        (metrics.SendingStatistics, metrics.SENDING_DESCRIPTIONS),
        (history.WeightStatistics, metrics.WEIGHT_DESCRIPTIONS),
    ):
        assert {field.name for field in fields(kind)} == set(descriptions)


def test_counters_grow_and_gauges_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Metric] = {}

    class MetricFamily:
        COUNTER, GAUGE = "counter", "gauge"

        def __init__(self, name: str, description: str, kind: str) -> None:
            self.key = f"{kind} {name}"

        def Metric(self, labels: Mapping[str, str]) -> Metric:  # noqa: N802 - Triton's name
            return made.setdefault(self.key, Metric())

    monkeypatch.setattr(metrics, "pb_utils", SimpleNamespace(MetricFamily=MetricFamily))
    triton = metrics.TritonMetrics("tritonlive_", metrics.SENDING_DESCRIPTIONS, {"model": "llm"})
    names = ("event_loop_lag_max_seconds", "response_queue_length", "channel_messages_total", "channel_steps_total")
    triton.publish(dict(zip(names, (0.5, 3, 10, 12), strict=True)))
    triton.publish(dict(zip(names, (0.0, 3, 11, 14), strict=True)))
    assert {name: metric.value for name, metric in made.items()} == {
        "gauge tritonlive_event_loop_lag_max_seconds": 0.0,
        "gauge tritonlive_response_queue_length": 3,
        "counter tritonlive_channel_messages_total": 11,
        "counter tritonlive_channel_steps_total": 14,
    }
