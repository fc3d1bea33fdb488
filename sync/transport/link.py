"""An authenticated connection between the trainer and one worker, for small messages and descriptors.

    message:  [length of the payload, 4 bytes]  [HMAC-SHA256, 32 bytes]  [payload: JSON, "code" and further fields]

The HMAC covers the direction and the message's number too, so a message cannot be forged, repeated, left out or sent
back. The key is made for this connection when it is opened (proofs.py). Messages are not encrypted.
"""

import hmac
import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sync.closing import Closing
from sync.errors import TransferError

from .messages import Message, MessageCode

# How often a wait checks whether it should end.
POLL_S = 0.25
# A peer that reads nothing and shows no progress for that long is lost.
STALL_TIMEOUT_S = 30.0
MAC_BYTES = 32
PREFIX_BYTES = 4 + MAC_BYTES
MAX_PAYLOAD_BYTES = 2**28  # digests of ten million tensors
RECEIVE_BYTES = 2**16
# Linux reports at once that the peer is gone, even while messages of it are unread.
HANG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Link(Closing):
    """One end of the connection. Any thread may call `close`; all other methods belong to one thread."""

    def __init__(self, connection: socket.socket, key: bytes, peer: str, *, is_trainer: bool) -> None:
        """peer: the name of the other end, for error messages."""
        connection.settimeout(0)
        self._connection = connection
        self._key = key
        self._sends, self._receives = (b"T", b"W") if is_trainer else (b"W", b"T")
        self._num_sent = self._num_received = 0
        self._unread = bytearray()
        self._descriptors: deque[int] = deque()
        self._is_closed = False
        self.peer = peer
        self.is_local = connection.family == getattr(socket, "AF_UNIX", None)
        """Whether the peer is on this machine: only then descriptors can be sent."""

    def fileno(self) -> int:
        """The descriptor, for `poll`; -1 when the link is closed."""
        return self._connection.fileno()

    def signal(self, code: MessageCode, *, descriptor: int = -1, **fields: Any) -> None:
        """Send a message. Raises TransferError when the peer is gone, or reads nothing for STALL_TIMEOUT_S."""
        if descriptor >= 0:
            fields["has_descriptor"] = True
        payload = json.dumps({"code": code, **fields}, separators=(",", ":")).encode()
        mac = self._mac(self._sends, self._num_sent, payload)
        data = memoryview(len(payload).to_bytes(4, "little") + mac + payload)
        self._num_sent += 1
        if descriptor >= 0:
            data = data[self._retry_send(lambda: socket.send_fds(self._connection, [data], [descriptor])) :]
        while data:
            data = data[self._retry_send(lambda unsent=data: self._connection.send(unsent)) :]

    def receive(self, timeout: float) -> Message | None:
        """The next message; None when there is none within `timeout` seconds.

        Raises TransferError when the peer is gone or the link is closed.
        """
        give_up = time.monotonic() + timeout
        while True:
            if (message := self._parse()) is not None:
                return message
            if not self._recv():
                left = give_up - time.monotonic()
                if left <= 0:
                    return None
                self._poll(select.POLLIN, left)

    def wait(self, timeout_s: float) -> Message:
        """The next message. Raises TransferError as `receive`, and when no message arrives within `timeout_s`."""
        message = self.receive(timeout_s)
        if message is None:
            raise TransferError(f"{self.peer} sent nothing for {timeout_s:g} s")
        return message

    def check(self) -> None:
        """Raises TransferError when the peer is gone or the link is closed."""
        if self._is_closed:
            raise TransferError(f"the link to {self.peer} was closed")
        if self._poll(0, 0) & HANG_UP:
            raise TransferError(f"{self.peer} is gone")

    def close(self) -> None:
        """Close the connection. Waits on both ends raise TransferError at once."""
        self._is_closed = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _mac(self, direction: bytes, number: int, payload: bytes) -> bytes:
        return hmac.digest(self._key, direction + number.to_bytes(8, "little") + payload, "sha256")

    def _parse(self) -> Message | None:
        """The first unread message; None when it has not arrived completely."""
        if len(self._unread) < PREFIX_BYTES:
            return None
        length = int.from_bytes(self._unread[:4], "little")
        if length > MAX_PAYLOAD_BYTES:
            raise TransferError(f"{self.peer} sent a message of {length} bytes; at most {MAX_PAYLOAD_BYTES} are read")
        if len(self._unread) < PREFIX_BYTES + length:
            return None
        mac, payload = bytes(self._unread[4:PREFIX_BYTES]), bytes(self._unread[PREFIX_BYTES : PREFIX_BYTES + length])
        del self._unread[: PREFIX_BYTES + length]
        if not hmac.compare_digest(mac, self._mac(self._receives, self._num_received, payload)):
            raise TransferError(f"a message that {self.peer} did not send: its HMAC is wrong")
        self._num_received += 1
        fields = json.loads(payload)
        code = MessageCode(fields.pop("code"))
        descriptor = self._descriptors.popleft() if fields.pop("has_descriptor", False) and self._descriptors else -1
        return Message(code, fields, descriptor)

    def _recv(self) -> bool:
        """Read the bytes that have arrived. False when there are none."""
        try:
            if self.is_local:
                # The kernel ends a read at a descriptor, so no call returns two.
                data, descriptors, _, _ = socket.recv_fds(self._connection, RECEIVE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
                self._descriptors += descriptors
            else:
                data = self._connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._gone(error) from None
        if not data:
            raise self._gone(None)
        self._unread += data
        return True

    def _retry_send(self, call: Callable[[], int]) -> int:
        give_up = time.monotonic() + STALL_TIMEOUT_S
        while True:
            try:
                return call()
            except BlockingIOError:
                self._poll(select.POLLOUT, POLL_S)
                if time.monotonic() > give_up:
                    raise TransferError(f"{self.peer} read nothing for {STALL_TIMEOUT_S:g} s") from None
            except OSError as error:
                raise self._gone(error) from None

    def _poll(self, events: int, timeout: float) -> int:
        poll = select.poll()
        try:
            poll.register(self._connection, events | HANG_UP)
        except ValueError:  # closed by another thread
            return select.POLLNVAL
        return dict(poll.poll(timeout * 1000)).get(self.fileno(), 0)

    def _gone(self, error: OSError | None) -> TransferError:
        if self._is_closed:
            return TransferError(f"the link to {self.peer} was closed")
        return TransferError(f"{self.peer} is gone{f': {error.strerror or error}' if error is not None else ''}")
