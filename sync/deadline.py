"""Deadlines, and waiting for calls until one."""

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
        """Seconds left, more than zero. Raises DeadlineError when there are none; its message names `what`."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"{what}: not done within {self.seconds:g} s")
        return left


def spawn(call: Callable[[], T], name: str) -> "Future[T]":
    """Run the call in a daemon thread. Unlike an executor's thread, it does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # `wait` raises it
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def wait(future: "Future[T]", deadline: Deadline, what: str, unless: "Future[None] | None" = None) -> T:
    """The call's result. Raises the call's error, or DeadlineError. Ctrl-C interrupts the wait.

    unless: a second future. As soon as it has an error, that error is raised, whether or not the call ever ends.
    """
    seconds = deadline.remaining(what)
    awaited: list[Future[Any]] = [future] if unless is None else [future, unless]
    concurrent.futures.wait(awaited, seconds, return_when=concurrent.futures.FIRST_COMPLETED)
    if unless is not None and unless.done() and not future.done():
        unless.result()
    if not future.done():
        raise DeadlineError(f"{what}: not done within {deadline.seconds:g} s")
    return future.result()
