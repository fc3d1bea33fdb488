"""Histograms on Triton's /metrics.

Triton's own histogram takes one observation a call, and a call is a message to Triton's process: several for each
token. So the engine's loop counts, and the counts are published as the counters that Prometheus makes of a histogram:
`NAME_bucket` with the label `le`, `NAME_sum` and `NAME_count`. Queries cannot tell the difference.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .metrics import LabelledCounters, TritonMetrics


class Histogram:
    """Counts of observations by size. Not thread-safe."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: the buckets' upper bounds, inclusive, ascending, without infinity."""
        self.les = [*map(str, map(float, bounds)), "+Inf"]
        """The buckets' values of the label `le`."""
        self.sum = 0.0
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self.sum += value
        self._counts[bisect_left(self._bounds, value)] += 1

    def series(self) -> "Series":
        """Its values now, cumulative as Prometheus has them."""
        return Series(dict(zip(self.les, accumulate(self._counts), strict=True)), self.sum)


@dataclass(frozen=True)
class Series:
    """Values of a histogram at one moment."""

    buckets: dict[str, int]
    """Observations of at most `le`, by `le`."""
    sum: float


class TritonHistogram:
    """A histogram registered with Triton; `publish` sends what changed."""

    def __init__(self, name: str, description: str, labels: Mapping[str, str], les: Iterable[str]) -> None:
        """les: the buckets' values of the label `le`."""
        self._buckets = LabelledCounters(f"{name}_bucket", description, labels, "le", les)
        totals = {"_count": description, "_sum": description}
        self._totals = TritonMetrics(name, totals, labels, counters=("_count", "_sum"))

    def publish(self, series: Series) -> None:
        """Send a Histogram's values. Runs on the writer's thread."""
        self._buckets.publish(series.buckets)
        self._totals.publish({"_count": series.buckets["+Inf"], "_sum": series.sum})
