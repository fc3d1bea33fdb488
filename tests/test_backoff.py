"""tritonlive/backoff.py with a clock of the test's."""

import pytest

from tritonlive import backoff
from tritonlive.backoff import Backoff


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backoff, "time", clock)
    return clock


def test_the_delay_doubles_up_to_the_limit(clock: Clock) -> None:
    made = Backoff(stable_s=60, largest_delay_s=3)
    assert [made.failed() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    assert (made.num_in_a_row, made.has_been_stable) == (5, False)


def test_there_is_no_end_of_restarts(clock: Clock) -> None:
    """Two to the power of 1,100 is no float."""
    made = Backoff(stable_s=60, largest_delay_s=5)
    assert {made.failed() for _ in range(1100)} == {0.5, 1, 2, 4, 5}


def test_a_process_that_ran_for_long_begins_again_with_the_first_delay(clock: Clock) -> None:
    made = Backoff(stable_s=60, largest_delay_s=30)
    assert [made.failed(), made.failed()] == [0.5, 1]
    made.began()
    clock.now += 60
    assert (made.failed(), made.has_been_stable) == (2, False)
    made.began()
    clock.now += 61
    assert (made.failed(), made.num_in_a_row, made.has_been_stable) == (0.5, 1, True)
    made.began()
    assert (made.failed(), made.has_been_stable) == (1, True)
