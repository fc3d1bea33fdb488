"""Detects that the connected trainer is gone: its process has ended, or its lease has run out."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from .lease import Lease

RECONNECT_DELAY_S = 0.25

OnGone = Callable[[int, str], Awaitable[None]]
OnExpired = Callable[[int], Awaitable[None]]


class TrainerWatch:
    """Watches the holder of the lease on the engine's loop."""

    def __init__(self, lease: Lease, on_gone: OnGone, on_expired: OnExpired) -> None:
        """Calls `on_gone(generation, reason)` or `on_expired(generation)`.

        The generation is the lease's at the start of the watch: a later generation means that the lease was taken
        again. `on_expired` must look at the lease once more, which may have been renewed meanwhile.
        """
        self._lease = lease
        self._on_gone = on_gone
        self._on_expired = on_expired
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, init_info: dict[str, Any]) -> None:
        """Watch the trainer that hosts the rendezvous of `init_info` and has just taken the lease."""
        self.stop()
        host, port = init_info.get("master_address"), init_info.get("master_port")
        if host and port:
            self._tasks.add(asyncio.create_task(self._until_gone(host, port, self._lease.generation)))
        if not self._lease.is_anonymous:
            self._tasks.add(asyncio.create_task(self._until_expired(self._lease.generation)))

    def stop(self) -> None:
        """End the watch. Callable from its own callbacks."""
        for task in self._tasks - {asyncio.current_task()}:  # a callback must not cancel its own task
            task.cancel()
        self._tasks.clear()

    async def _until_gone(self, host: str, port: int, generation: int) -> None:
        """Keep an idle connection to the trainer's rendezvous. The trainer is gone when a new connection is refused.

        The end of a connection means nothing: a rendezvous may close connections that do not join.
        """
        with suppress(OSError):
            while True:
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    await reader.read(1)
                finally:
                    writer.close()
                await asyncio.sleep(RECONNECT_DELAY_S)
        await self._on_gone(generation, "the trainer is gone")

    async def _until_expired(self, generation: int) -> None:
        while self._lease.is_held and self._lease.generation == generation:
            if (left := self._lease.left_s) > 0:
                await asyncio.sleep(left)
            else:
                await self._on_expired(generation)
