"""Who compiles next: quick grammars do not wait behind slow ones.

Nobody knows before its end how long a compilation takes. So each grammar first gets a little processor time in the
quick lane. What needs more is ended, and starts again in the slow lane, one at a time, with the operator's deadline.
In the quick lane the newest grammar comes first: after a flood of slow ones, it need not wait for them.
"""

import asyncio
from types import TracebackType
from typing import Self

from tritonlive.backend.tensors import RequestError
from tritonlive.wire.error_codes import ErrorCode


class Crowded(RequestError):
    """Too many new grammars at once; the front end answers 429."""

    def __init__(self) -> None:
        super().__init__(
            "structured_outputs: too many new grammars are being compiled; try again in a few seconds", ErrorCode.BUSY
        )


class Lane:
    """A semaphore of `num_slots`, entered with `async with`.

    The newest waits least. Beyond `max_waiting` the longest-waiting one raises Crowded.
    """

    def __init__(self, num_slots: int, max_waiting: int) -> None:
        self._num_free = num_slots
        self._max_waiting = max_waiting
        self._waiting: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        if self._num_free > 0:
            self._num_free -= 1
            return self
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if len(self._waiting) > self._max_waiting:
            self._waiting.pop(0).set_exception(Crowded())
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release()  # its turn came at the same moment
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._num_free += 1
