"""Measures the delay of the engine's event loop, which delays every request and every token."""

import asyncio
import time
from collections import deque

INTERVAL_S = 0.1
# Long enough for a scraper to see every peak: Prometheus reads metrics every 15 s by default.
WINDOW_S = 15.0


class LoopLag:
    """Largest delay within a window. Run `watch` on the loop."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=round(WINDOW_S / INTERVAL_S))

    @property
    def max_s(self) -> float:
        """The largest delay of a timer, in seconds, within about the last `WINDOW_S`."""
        return max(self._lags, default=0.0)

    async def watch(self) -> None:
        """Measure the running loop until cancelled."""
        while True:
            due = time.monotonic() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._lags.append(max(0.0, time.monotonic() - due))  # uvloop's timers may fire a millisecond early
