"""How soon a process that has ended is started again."""

import time

FIRST_DELAY_S = 0.5


class Backoff:
    """Each restart in a row waits twice as long as the one before it, up to a limit."""

    def __init__(self, stable_s: float, largest_delay_s: float) -> None:
        """stable_s: a process that has run for so long has recovered; what happens next is another failure."""
        self._stable_s = stable_s
        self._largest_delay_s = largest_delay_s
        self._began_at = time.monotonic()
        self._delay_s = FIRST_DELAY_S
        self.num_in_a_row = 0
        """Failures in a row, this one included."""
        self.has_been_stable = False

    def began(self) -> None:
        """The process was started."""
        self._began_at = time.monotonic()

    def failed(self) -> float:
        """The process has failed. Returns the seconds after which it is to be started again."""
        if time.monotonic() - self._began_at > self._stable_s:
            self._delay_s, self.num_in_a_row, self.has_been_stable = FIRST_DELAY_S, 0, True
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, self._largest_delay_s)
        self.num_in_a_row += 1
        return delay_s
