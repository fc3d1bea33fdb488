"""tritonlive/backend/histograms.py: what Prometheus would count, and what reaches Triton."""

from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as PrometheusHistogram

from tritonlive.backend.histograms import Histogram, TritonHistogram

BOUNDS = (0.5, 1, 2.5)
VALUES = (0.1, 0.5, 0.6, 1.0, 2.5, 2.6, 100.0)


def prometheus(values: tuple[float, ...]) -> dict[str, float]:
    """Series of Prometheus's own histogram, by the label `le` or by the name's end."""
    histogram = PrometheusHistogram("h", "", buckets=BOUNDS, registry=CollectorRegistry())
    for value in values:
        histogram.observe(value)
    samples = [sample for family in histogram.collect() for sample in family.samples if "created" not in sample.name]
    return {sample.labels.get("le", sample.name.removeprefix("h")): sample.value for sample in samples}


def test_the_series_are_those_of_prometheus() -> None:
    histogram = Histogram(BOUNDS)
    for value in VALUES:
        histogram.observe(value)
    series, expected = histogram.series(), prometheus(VALUES)
    assert series.sum == expected["_sum"]
    assert {**series.buckets, "_count": series.buckets["+Inf"], "_sum": series.sum} == expected


def test_triton_gets_what_was_added_since_the_last_publication() -> None:
    histogram = Histogram(BOUNDS)
    triton: Any = TritonHistogram("vllm:h", "", {"model": "llm"}, histogram.les)
    for value in VALUES:
        histogram.observe(value)
        triton.publish(histogram.series())
    triton.publish(histogram.series())
    published = {le: metric.value for le, metric in triton._buckets._metrics.items()}
    published |= {name: metric.value for name, metric in triton._totals._metrics.items()}
    assert published == prometheus(VALUES)
