"""The trainer's side of the handshake (proofs.py)."""

import hmac
import os
import secrets
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field

from sync.addresses import listen
from sync.closing import Closing
from sync.errors import TransferError
from sync.transport.link import MAC_BYTES, POLL_S, Link
from sync.transport.proofs import HELLO_BYTES, NONCE_BYTES, RANK_BYTES, is_same_user, keep_alive, prove

# A connection that has sent something is closed unless it proves itself within this time.
GREETING_TIMEOUT_S = 10.0
# Limit of silent connections. Beyond it the newest are closed, once they had time to send: replicas connect early.
MAX_SILENT = 256
BACKLOG = 4096


@dataclass
class _Greeting:
    """A connection that has not proved yet that it is a worker's."""

    connection: socket.socket
    began: float = field(default_factory=time.monotonic)
    data: bytearray = field(default_factory=bytearray)
    context: bytes = b""
    """Both nonces and the rank, once the trainer has answered."""

    def receive(self, secret: bytes) -> bool:
        """Read what has arrived, and answer a hello. True when the connection is useless: it ended, or failed."""
        expected = HELLO_BYTES + MAC_BYTES if self.context else HELLO_BYTES
        try:
            data = self.connection.recv(expected - len(self.data))
            self.data += data
            if len(self.data) == HELLO_BYTES and not self.context:
                nonce = secrets.token_bytes(NONCE_BYTES)
                self.context = nonce + bytes(self.data)
                self.connection.send(
                    nonce + prove(secret, b"trainer", self.context)
                )  # the send buffer of a new connection is empty
        except BlockingIOError:
            return False
        except OSError:
            return True
        return not data

    @property
    def is_complete(self) -> bool:
        return len(self.data) == HELLO_BYTES + MAC_BYTES

    @property
    def rank(self) -> int:
        return int.from_bytes(self.data[:RANK_BYTES], "little")


class TrainerHandshake(Closing):
    """Admits workers to the trainer's group. It listens until the trainer leaves."""

    def __init__(self, address: str, port: int, secret: str, *, is_local_wanted: bool = True) -> None:
        """Listen; port 0 picks a free one. Raises TransferError as `listen`."""
        self._secret = bytes.fromhex(secret)
        self._greetings: dict[int, _Greeting] = {}  # by descriptor, the oldest first
        self._listeners = [listen(address, port)]
        self.port = self._listeners[0].getsockname()[1]
        self.local_address = ""
        """Name of the Unix socket; empty when there is none. It is abstract (Linux): no file is left behind."""
        if is_local_wanted and hasattr(os, "memfd_create"):
            self.local_address = f"tritonlive-{secrets.token_hex(16)}"
            self._listeners.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            self._listeners[1].bind(f"\0{self.local_address}")
        for listener in self._listeners:
            listener.listen(BACKLOG)
            listener.settimeout(0)

    def accept(self, num_workers: int, timeout_s: float) -> dict[int, Link]:
        """A link to each worker, by rank (1 to num_workers). Raises TransferError when not all join in time."""
        links: dict[int, Link] = {}
        give_up = time.monotonic() + timeout_s
        try:
            while len(links) < num_workers:
                if time.monotonic() > give_up:
                    missing = [str(rank) for rank in range(1, num_workers + 1) if rank not in links]
                    raise TransferError(f"workers {', '.join(missing)} did not join within {timeout_s:g} s")
                self._poll(links, num_workers)
        except BaseException:
            for link in links.values():
                link.close()
            raise
        return links

    def close(self) -> None:
        """Stop listening, and close all connections that are no links."""
        for listener in self._listeners:
            listener.close()
        for descriptor in list(self._greetings):
            self._greetings.pop(descriptor).connection.close()

    def _poll(self, links: dict[int, Link], num_workers: int) -> None:
        poll = select.poll()
        for listener in self._listeners:
            poll.register(listener, select.POLLIN)
        for descriptor in self._greetings:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(POLL_S * 1000):
            greeting = self._greetings.get(descriptor)
            if greeting is None:
                continue
            is_useless = greeting.receive(self._secret)
            if is_useless or greeting.is_complete:
                del self._greetings[descriptor]
                if is_useless or not self._admit(greeting, num_workers, links):
                    greeting.connection.close()
        for listener in self._listeners:
            self._greet(listener)
        self._sort_out()

    def _greet(self, listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            if not is_same_user(connection):
                connection.close()
                return
            connection.settimeout(0)
            self._greetings[connection.fileno()] = _Greeting(connection)

    def _sort_out(self) -> None:
        """Close connections that do not finish the handshake in time, and silent ones beyond the limit."""
        now = time.monotonic()
        late = [greeting for greeting in self._greetings.values() if now - greeting.began > GREETING_TIMEOUT_S]
        silent = [greeting for greeting in late if not greeting.data]
        for greeting in [*(greeting for greeting in late if greeting.data), *silent[MAX_SILENT:]]:
            del self._greetings[greeting.connection.fileno()]
            greeting.connection.close()

    def _admit(self, greeting: _Greeting, num_workers: int, links: dict[int, Link]) -> bool:
        """Add a link when the connection proves itself as a worker of a free rank. False when it does not."""
        proof = bytes(greeting.data[HELLO_BYTES:])
        if not hmac.compare_digest(proof, prove(self._secret, b"worker", greeting.context)):
            return False
        rank = greeting.rank
        if rank in links or not 1 <= rank <= num_workers:
            return False
        keep_alive(greeting.connection)
        key = prove(self._secret, b"link", greeting.context)
        links[rank] = Link(greeting.connection, key, f"worker {rank}", is_trainer=True)
        return True
