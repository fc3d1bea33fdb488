"""Tells the clients of open streams that the server ends, before uvicorn cuts their connections.

uvicorn 0.54 cancels what still runs at the end of `timeout_graceful_shutdown`; a stream then ends without an event.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

# For the last events to reach their clients.
LAST_EVENTS_S = 1.0
REASON = "the server is shutting down"


class Engine(Protocol):
    def end_all(self, reason: str) -> None: ...


def notice_of_shutdown(engine: Engine, drain_s: float) -> Callable[[], None]:
    """A function that has `engine` end all generations shortly before `drain_s` is over. Only its first call counts."""
    scheduled: list[asyncio.TimerHandle] = []

    def on_shutdown() -> None:
        if not scheduled:
            delay = max(drain_s - LAST_EVENTS_S, drain_s / 2)
            scheduled.append(asyncio.get_running_loop().call_later(delay, engine.end_all, REASON))

    return on_shutdown
