"""One operation on a replica's weights at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tritonlive.backend.tensors import Conflict

LOCK_TIMEOUT_S = 60.0


class OperationLock:
    """Serialises operations on the engine's loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def exclusive(self, timeout_s: float | None = LOCK_TIMEOUT_S) -> AsyncIterator[None]:
        """Hold the lock. Raises Conflict when another operation holds it for `timeout_s` (None: wait for ever)."""
        try:
            await asyncio.wait_for(self._lock.acquire(), timeout_s)
        except TimeoutError:
            raise Conflict(f"weights: another operation has been running for {timeout_s:.0f} s") from None
        try:
            yield
        finally:
            self._lock.release()
