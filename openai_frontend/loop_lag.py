"""How far the front end's event loop is behind: all that it serves waits as long."""

import asyncio
import time

from prometheus_client import REGISTRY, CollectorRegistry, Histogram

INTERVAL_S = 0.1
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class LoopLag:
    """With several front-end processes, of all their loops."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._lag = Histogram(
            "tritonlive_event_loop_lag_seconds",
            f"How much later than asked a task that sleeps {INTERVAL_S} s was woken.",
            registry=registry,
            buckets=BUCKETS_S,
        )

    async def watch(self) -> None:
        """Measure the running loop until cancelled."""
        while True:
            due = time.monotonic() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._lag.observe(max(0.0, time.monotonic() - due))  # uvloop's timers may be a millisecond early
