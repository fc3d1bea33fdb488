"""A goal says which way is better, and whether its target is reached."""

import pytest

from bench.goals import Goal
from bench.stats import Spread


@pytest.mark.parametrize(
    ("better", "median", "verdict"),
    [("higher", 0.99, "ok"), ("higher", 0.98, "MISSED"), ("lower", 0.99, "ok"), ("lower", 1.0, "MISSED")],
)
def test_the_target_is_a_floor_or_a_ceiling(better, median, verdict):
    assert Goal("tokens/s", better, 0.99).verdict(Spread(median, 0.0, 9.0)) == verdict


def test_without_a_target_there_is_no_verdict():
    assert Goal("tokens/s", "higher").verdict(Spread(0.1, 0.1, 0.1)) == ""
    assert Goal("tokens/s", "higher").limit() == ""


def test_what_is_compared_is_a_ratio_or_what_is_added_or_ours_alone():
    assert Goal("seconds", "lower").reached([2.0, 4.0], [1.0, 2.0]) == Spread(2.0, 2.0, 2.0)
    assert Goal("ttft p50 ms", "lower", compare="added").reached([5.0, 9.0, 7.0], [4.0, 4.0, 4.0]) == Spread(3, 1, 5)
    assert Goal("tokens/s", "higher", compare="absolute").reached([5.0, 9.0, 7.0], []) == Spread(7, 5, 9)


def test_a_target_reads_as_it_is_meant():
    assert Goal("tokens/s", "higher", 0.99).limit() == "≥ 0.990"
    assert Goal("ttft p50 ms", "lower", 2.0, compare="added").limit() == "≤ +2.0 ms"
    assert Goal("tokens/s", "higher", 50_000, compare="absolute").limit() == "≥ 50000 tokens/s"


def test_an_absolute_figure_reads_as_what_it_is():
    goal = Goal("steps/message", "lower", compare="absolute")
    assert [goal.show(value) for value in (61234.5, 1.0166, 17.26)] == ["61234", "1.02", "17.3"]
