"""Keeps a running stack running: starts tritonserver or the front end again when it has failed."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import httpx

from tritonlive.backoff import Backoff

from . import ready
from .process import ManagedProcess
from .stack import Stack

MAX_RESTARTS = 5
"""Restarts of one process in a row, at most."""
LARGEST_DELAY_S = 30.0
STABLE_S = 300.0
HEALTH_TIMEOUT_S = 5.0


class Restarts:
    """Restarts of one process: when the next one is due, and how many came in a row."""

    def __init__(self, process: ManagedProcess, failure: Callable[[], str | None]) -> None:
        """failure: returns why the process does not serve any more, or None."""
        self.process = process
        self.failure = failure
        self._backoff = Backoff(STABLE_S, LARGEST_DELAY_S)
        self._due_at: float | None = None

    @property
    def num_in_a_row(self) -> int:
        return self._backoff.num_in_a_row

    @property
    def is_planned(self) -> bool:
        return self._due_at is not None

    @property
    def is_due(self) -> bool:
        return self._due_at is not None and time.monotonic() >= self._due_at

    def plan(self) -> str | None:
        """Look at the process. If it has just failed, plan its restart, and return the failure.

        Raises ProcessDiedError after MAX_RESTARTS in a row.
        """
        if self._due_at is not None or (failure := self.failure()) is None:
            return None
        delay_s = self._backoff.failed()
        if self.num_in_a_row > MAX_RESTARTS:
            raise self.process.died(f"gave up after {MAX_RESTARTS} restarts in a row: {failure}")
        self._due_at = time.monotonic() + delay_s
        return failure

    def done(self) -> None:
        """It was started again."""
        self._due_at = None
        self._backoff.began()


class Supervisor:
    """Watches a stack that is ready. The processes are restarted one by one: the other goes on meanwhile."""

    def __init__(self, stack: Stack, say: Callable[[str], None]) -> None:
        """say: gets a line for each failure, and one when the stack serves again."""
        self._stack = stack
        self._say = say
        self._restarts = (
            Restarts(stack.triton, stack.triton_failure),
            Restarts(stack.frontend, stack.frontend.failure),
        )
        self._failed_at: float | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._health: Future[bool] | None = None
        stack.find_model_process()

    def look(self) -> None:
        """Restart what failed. Returns soon, so that a signal is heard. Raises ProcessDiedError if that fails."""
        for restarts in self._restarts:
            if (failure := restarts.plan()) is not None:
                self._failed_at = self._failed_at or time.monotonic()
                self._health = None
                restarts.process.kill()  # what a dead leader has left of its session
                count = f"{restarts.num_in_a_row} of {MAX_RESTARTS}"
                self._say(f"{failure}; starting {restarts.process.name} again ({count})")
            elif restarts.is_due:
                self._stack.start_again(restarts.process)
                restarts.done()
        for line in self._stack.lost_models():
            self._say(line)
        if self._failed_at is not None and not any(each.is_planned for each in self._restarts) and self._is_healthy():
            self._stack.find_model_process()
            self._say(f"serving again after {time.monotonic() - self._failed_at:.0f} s")
            self._failed_at = None

    def close(self) -> None:
        """End the thread that asks the front end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _is_healthy(self) -> bool:
        """Whether the front end has said that it can generate. Asks it in a thread."""
        if self._health is None:
            self._health = self._pool.submit(self._ask)
        if not self._health.done():
            return False
        answer, self._health = self._health.result(), None
        return answer

    def _ask(self) -> bool:
        with httpx.Client(timeout=HEALTH_TIMEOUT_S) as client:
            return ready.is_ok(client, f"{self._stack.frontend_url}/health")
