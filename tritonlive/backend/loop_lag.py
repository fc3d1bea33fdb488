"""How far the engine's event loop is behind: every request and every token waits as long."""

import asyncio
import time
from collections import deque

INTERVAL_S = 0.1
# Whoever reads metrics this often sees every peak: Prometheus by default does every 15 s.
WINDOW_S = 15.0


class LoopLag:
    """Run `watch` on the loop."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=round(WINDOW_S / INTERVAL_S))

    @property
    def max_s(self) -> float:
        """How much later than asked a task was woken, at most, within about the last `WINDOW_S`."""
        return max(self._lags, default=0.0)

    async def watch(self) -> None:
        """Measure the running loop until cancelled."""
        while True:
            due = time.monotonic() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._lags.append(max(0.0, time.monotonic() - due))  # uvloop's timers may be a millisecond early
