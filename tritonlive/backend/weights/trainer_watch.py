"""Notices that the connected trainer is gone: its process has ended, or its lease has run out."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from .lease import Lease

RECONNECT_DELAY_S = 0.25

OnGone = Callable[[int, str], Awaitable[None]]
OnLate = Callable[[int], Awaitable[None]]


class TrainerWatch:
    """Watches the holder of the lease on the engine's loop."""

    def __init__(self, lease: Lease, on_gone: OnGone, on_late: OnLate) -> None:
        """`on_gone(generation, reason)` and `on_late(generation)`, which may find the lease renewed after all.

        The lease's generation tells whether it is still about that trainer.
        """
        self._lease = lease
        self._on_gone = on_gone
        self._on_late = on_late
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, init_info: dict[str, Any]) -> None:
        """Watch the trainer that hosts the rendezvous of `init_info` and has just taken the lease."""
        self.stop()
        host, port = init_info.get("master_address"), init_info.get("master_port")
        if host and port:
            self._tasks.add(asyncio.create_task(self._until_gone(host, port, self._lease.generation)))
        if not self._lease.is_anonymous:
            self._tasks.add(asyncio.create_task(self._until_late(self._lease.generation)))

    def stop(self) -> None:
        for task in self._tasks - {asyncio.current_task()}:  # what it leads to must not cut itself off
            task.cancel()
        self._tasks.clear()

    async def _until_gone(self, host: str, port: int, generation: int) -> None:
        """Hold an idle connection to the trainer's rendezvous; the trainer is gone when nobody listens there any more.

        A connection that ends alone says nothing: a rendezvous need not keep those that do not join.
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

    async def _until_late(self, generation: int) -> None:
        while self._lease.is_held and self._lease.generation == generation:
            if (left := self._lease.left_s) > 0:
                await asyncio.sleep(left)
            else:
                await self._on_late(generation)
