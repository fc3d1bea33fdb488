"""How far an event loop is behind: every request and every token on it waits as long.

The model publishes the largest lag of the last seconds, since Triton's metrics have no histograms; the front end
publishes a histogram.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from prometheus_client import REGISTRY, CollectorRegistry, Histogram

INTERVAL_S = 0.1
# Prometheus scrapes every 15 s by default: so it sees every peak.
WINDOW_S = 15.0
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


async def watch_lag(observe: Callable[[float], object]) -> None:
    """Call `observe` with the running loop's lag in seconds, ten times a second, until cancelled."""
    while True:
        due = time.monotonic() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        observe(max(0.0, time.monotonic() - due))  # uvloop's timers may be a millisecond early


class LargestLag:
    """The largest lag within about the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=round(WINDOW_S / INTERVAL_S))

    def observe(self, lag_s: float) -> None:
        self._lags.append(lag_s)

    @property
    def max_s(self) -> float:
        """Seconds; 0 before the first observation."""
        return max(self._lags, default=0.0)


def lag_histogram(registry: CollectorRegistry = REGISTRY) -> Histogram:
    """The front end's metric; with several processes, of all their loops."""
    return Histogram(
        "tritonlive_event_loop_lag_seconds",
        f"Delay with which a task that sleeps {INTERVAL_S} s was woken.",
        registry=registry,
        buckets=BUCKETS_S,
    )
