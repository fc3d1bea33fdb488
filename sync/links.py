"""A connection between the trainer and a worker on its machine, over which bytes count and descriptors travel."""

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from .closing import Closing
from .errors import TransferError
from .gloo import POLL_S, GlooGroup

T = TypeVar("T")


class Link(Closing):
    """One side's end: each byte says that a piece is there, or that it was copied out."""

    def __init__(self, connection: socket.socket, group: GlooGroup, peer: str) -> None:
        connection.settimeout(POLL_S)
        self._connection = connection
        self._group = group
        self._peer = peer
        self._heard = 0
        self._descriptors: deque[int] = deque()

    def tell(self) -> None:
        """One more. Raises TransferError as `wait_for`."""
        self._persist(lambda: self._connection.send(b"\0"))

    def wait_for(self, count: int) -> None:
        """Until the peer has told so many since the beginning.

        Raises TransferError when it is gone, stalls, or the group is closed meanwhile.
        """
        while self._heard < count:
            self._hear()

    def send_descriptor(self, descriptor: int) -> None:
        """Raises TransferError as `wait_for`."""
        self._persist(lambda: socket.send_fds(self._connection, [b"\0"], [descriptor]))

    def receive_descriptor(self) -> int:
        """The next one, after whatever is told before; the caller closes it. Raises TransferError as `wait_for`."""
        while not self._descriptors:
            self._hear()
        return self._descriptors.popleft()

    def close(self) -> None:
        """Whoever waits on it, on either side, hears of it at once."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _hear(self) -> None:
        # The kernel ends what it gives at a descriptor: no call brings two.
        told, descriptors, _, _ = self._persist(
            lambda: socket.recv_fds(self._connection, 64, 1, socket.MSG_CMSG_CLOEXEC)
        )
        if not told:
            raise TransferError(f"shared memory: {self._peer} is gone")
        self._descriptors += descriptors
        self._heard += len(told) - len(descriptors)

    def _persist(self, call: Callable[[], T]) -> T:
        give_up = time.monotonic() + self._group.stall_timeout_s
        while True:
            try:
                return call()
            except TimeoutError:
                self._group.check_peer()
                if time.monotonic() > give_up:
                    why = f"{self._peer} did nothing for {self._group.stall_timeout_s:g} s"
                    raise TransferError(f"shared memory: {why}") from None
            except OSError as error:
                raise TransferError(f"shared memory: {self._peer} is gone: {error}") from None
