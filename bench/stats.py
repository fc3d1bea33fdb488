"""Statistics of a benchmark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, with linear interpolation.

    Raises:
        ValueError: if there are no values or `percent` is not within 0…100.
    """
    if not values:
        raise ValueError("percentile of no values")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must be within 0 and 100, not {percent}")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True)
class Spread:
    """The median of some values, with the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises `statistics.StatisticsError` if there are no values."""
        return cls(median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """ours / theirs, pair by pair. The two of a pair ran in succession, so the ratio cancels common slowdowns.

    Raises:
        ValueError: if the numbers of values differ.
    """
    return Spread.of([one / other for one, other in zip(ours, theirs, strict=True)])


def differences(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """ours - theirs, pair by pair.

    Raises:
        ValueError: if the numbers of values differ.
    """
    return Spread.of([one - other for one, other in zip(ours, theirs, strict=True)])
