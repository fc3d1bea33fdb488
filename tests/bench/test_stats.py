"""Percentiles, spreads, ratios."""

import pytest

from bench.stats import Spread, percentile, ratios


def test_percentiles_are_interpolated() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0) == 1.0
    assert percentile(values, 50) == 2.5
    assert percentile(values, 100) == 4.0
    assert percentile([7.0], 99) == 7.0


def test_a_percentile_needs_values_and_a_percentage() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="101"):
        percentile([1.0], 101)


def test_ratios_are_of_pairs() -> None:
    # A machine twice as fast for the second pair changes no ratio.
    assert ratios([90.0, 180.0], [100.0, 200.0]) == Spread(0.9, 0.9, 0.9)


def test_ratios_need_pairs() -> None:
    with pytest.raises(ValueError, match="argument"):
        ratios([1.0], [1.0, 2.0])
