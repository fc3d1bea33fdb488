"""Deadlines, and calls that may block but never for longer than one."""

import concurrent.futures
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .errors import DeadlineError

T = TypeVar("T")


class Deadline:
    """A point in time by which the work must be done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    def remaining(self, what: str) -> float:
        """Seconds left, more than zero. Raises DeadlineError, saying what was waited for, when there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"{what}: not done within {self.seconds:g} s")
        return left


def spawn(call: Callable[[], T], name: str) -> "Future[T]":
    """Run the call in a daemon thread: unlike an executor's, one that never returns does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # carried to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def wait(future: "Future[T]", deadline: Deadline, what: str, unless: "Future[None] | None" = None) -> T:
    """The call's result; raises what it raised, or DeadlineError. Ctrl-C gets through while it waits.

    unless: raises this future's error as soon as it has one, whether or not the call ever ends.
    """
    seconds = deadline.remaining(what)
    awaited: list[Future[Any]] = [future] if unless is None else [future, unless]
    concurrent.futures.wait(awaited, seconds, return_when=concurrent.futures.FIRST_COMPLETED)
    if unless is not None and unless.done() and not future.done():
        unless.result()
    if not future.done():
        raise DeadlineError(f"{what}: not done within {deadline.seconds:g} s")
    return future.result()
