import threading
import time
from concurrent.futures import Future

import pytest

from sync.deadline import Deadline, spawn, wait
from sync.errors import DeadlineError, TransferError


def test_what_the_call_returns_or_raises():
    assert wait(spawn(lambda: 7, "seven"), Deadline(5), "seven") == 7
    with pytest.raises(ZeroDivisionError):
        wait(spawn(lambda: 1 / 0, "zero"), Deadline(5), "zero")


def test_a_timeout_of_the_calls_own_is_not_taken_for_the_deadlines():
    def fails() -> None:
        raise TimeoutError("the call's own")

    with pytest.raises(TimeoutError, match="the call's own"):
        wait(spawn(fails, "timeout"), Deadline(5), "timeout")


def test_a_call_that_never_ends_is_left_at_the_deadline():
    released = threading.Event()
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"stuck: not done within 0\.2 s"):
        wait(spawn(lambda: released.wait(20), "stuck"), Deadline(0.2), "stuck")
    assert time.monotonic() - began < 2
    released.set()


def test_an_error_elsewhere_ends_the_wait_for_a_stuck_call_but_not_a_call_that_is_done():
    released = threading.Event()
    failure: Future[None] = Future()
    threading.Timer(0.2, failure.set_exception, [TransferError("rank 1 failed")]).start()
    began = time.monotonic()
    with pytest.raises(TransferError, match="rank 1 failed"):
        wait(spawn(lambda: released.wait(20), "stuck"), Deadline(20), "stuck", failure)
    assert time.monotonic() - began < 2
    released.set()
    done: Future[int] = Future()
    done.set_result(7)
    assert wait(done, Deadline(5), "seven", failure) == 7
    assert wait(spawn(lambda: 8, "eight"), Deadline(5), "eight", Future()) == 8
