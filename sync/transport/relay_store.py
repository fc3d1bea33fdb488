"""The rendezvous of a gloo group, over the authenticated links of its members.

A TCPStore would open a port at which any stranger can list and change the members' addresses. This store has no port:
a member sends each value to the trainer, which passes it on to all others.
"""

import time
from collections.abc import Callable
from datetime import timedelta

from torch import distributed

from sync.errors import TransferError
from sync.transport.messages import Message


class RelayStore(distributed.Store):
    """One member's copy. Keep a reference for as long as the group lives: torch keeps none."""

    def __init__(self, send: Callable[[str, str], None], receive: Callable[[], None], timeout_s: float) -> None:
        """send: sends a key and its value to the others. receive: waits briefly for theirs, and calls `put`."""
        super().__init__()
        self._timeout_s = timeout_s
        self._send = send
        self._receive = receive
        self._values: dict[str, bytes] = {}

    def put(self, message: Message) -> None:
        """Store a value that another member has set."""
        self._values[message.fields["key"]] = bytes.fromhex(message.fields["value"])

    # ---- gloo calls these; their exceptions pass through it to the code that forms the group -----------------------

    def set(self, key: str, value: bytes) -> None:  # ty: ignore[incompatible-method-override]
        self._values[key] = value
        self._send(key, value.hex())

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are set. Raises TransferError when they are not in time, or a member is gone."""
        give_up = time.monotonic() + (self._timeout_s if timeout is None else timeout.total_seconds())
        while missing := [key for key in keys if key not in self._values]:
            if time.monotonic() > give_up:
                raise TransferError(f"gloo: the members did not meet in time; missing: {', '.join(missing)}")
            self._receive()
