"""How the trainer and its workers find each other and prove who they are.

    trainer: listens at master_address (TCP) and, for workers on its machine, at a Unix socket
    worker:  connects to the Unix socket if it is there, else to the other
    worker → trainer   rank, nonce
    trainer → worker   nonce, HMAC(secret, "trainer", both nonces, rank)
    worker → trainer   HMAC(secret, "worker", both nonces, rank)

The secret is made for each group. It travels only in the control call that calls the workers in, which needs the
control key, and nothing of it can be learnt from what is sent here. At the Unix socket both ends also compare the other
process's user with their own. The key of the link that follows (links.py) depends on both nonces.

A connection that says nothing gets no byte and stays open until the trainer leaves, and so does the TCP listener: a
replica holds such a connection to notice that its trainer is gone (tritonlive/backend/weights/trainer_watch.py).

The network must be trusted nevertheless: messages and weights are not encrypted (gloo.py).
"""

import hmac
import os
import secrets
import select
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field

from sync.addresses import listen
from sync.closing import Closing
from sync.errors import TransferError
from sync.transport.link import MAC_BYTES, POLL_S, Link

NONCE_BYTES = 32
RANK_BYTES = 4
HELLO_BYTES = RANK_BYTES + NONCE_BYTES
ANSWER_BYTES = NONCE_BYTES + MAC_BYTES
# A connection that has begun to speak and has not proved itself by then is closed.
GREETING_TIMEOUT_S = 10.0
# Connections that say nothing. Beyond that many the newest go, if they had time to speak: replicas come early.
MAX_SILENT = 256
BACKLOG = 4096
# A machine that is lost without a word is noticed within half a minute. Linux's names; others have their own defaults.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


@dataclass
class _Greeting:
    """A connection that has yet to prove that it is a worker's."""

    connection: socket.socket
    began: float = field(default_factory=time.monotonic)
    data: bytearray = field(default_factory=bytearray)
    context: bytes = b""
    """Both nonces and the rank, once the trainer has answered."""

    def receive(self, secret: bytes) -> bool:
        """Read what is there and answer a hello; True when the connection is of no use: it ended, or failed."""
        expected = HELLO_BYTES + MAC_BYTES if self.context else HELLO_BYTES
        try:
            data = self.connection.recv(expected - len(self.data))
            self.data += data
            if len(self.data) == HELLO_BYTES and not self.context:
                nonce = secrets.token_bytes(NONCE_BYTES)
                self.context = nonce + bytes(self.data)
                self.connection.send(nonce + _prove(secret, b"trainer", self.context))  # a new connection has room
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
    """The trainer's end. It stays open until the trainer leaves."""

    def __init__(self, address: str, port: int, secret: str, *, is_local_wanted: bool = True) -> None:
        """Listen; port 0 picks a free one. Raises TransferError as `listen`."""
        self._secret = bytes.fromhex(secret)
        self._greetings: dict[int, _Greeting] = {}  # by descriptor, the oldest first
        self._listeners = [listen(address, port)]
        self.port = self._listeners[0].getsockname()[1]
        self.local_address = ""
        """Name of the Unix socket, in Linux's abstract namespace: a killed process leaves no file. Empty: none."""
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
        """Stop listening, and close whatever is no link."""
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
        """Close connections that do not go on: those that began to speak, and silent ones that are too many."""
        now = time.monotonic()
        late = [greeting for greeting in self._greetings.values() if now - greeting.began > GREETING_TIMEOUT_S]
        silent = [greeting for greeting in late if not greeting.data]
        for greeting in [*(greeting for greeting in late if greeting.data), *silent[MAX_SILENT:]]:
            del self._greetings[greeting.connection.fileno()]
            greeting.connection.close()

    def _admit(self, greeting: _Greeting, num_workers: int, links: dict[int, Link]) -> bool:
        """Whether it is a worker that has proved itself, of a rank that is free; then there is a link to it."""
        proof = bytes(greeting.data[HELLO_BYTES:])
        if not hmac.compare_digest(proof, _prove(self._secret, b"worker", greeting.context)):
            return False
        rank = greeting.rank
        if rank in links or not 1 <= rank <= num_workers:
            return False
        _keep_alive(greeting.connection)
        key = _prove(self._secret, b"link", greeting.context)
        links[rank] = Link(greeting.connection, key, f"worker {rank}", is_trainer=True)
        return True


def join(address: str, port: int, local_address: str, secret: str, rank: int, timeout_s: float) -> Link:
    """A worker's link to the trainer. Raises TransferError when there is none, or it does not know the secret.

    Waits until the trainer, which may still call other workers in, has answered; at most `timeout_s` seconds. A trainer
    of another user closes the connection to its Unix socket; then the other address is tried.
    """
    deadline = time.monotonic() + timeout_s
    where = f"the trainer at {address}:{port}"
    if local_address and (connection := _connect_locally(local_address)) is not None:
        try:
            return _introduce(connection, where, secret, rank, deadline)
        except ConnectionError:
            pass
        except OSError as error:
            raise _refused(where, rank, error) from None
    try:
        connection = socket.create_connection((address, port), timeout=timeout_s)
    except OSError as error:
        why = error.strerror or error
        raise TransferError(f"no trainer at {address}:{port} within {timeout_s:g} s: {why}") from None
    _keep_alive(connection)
    try:
        return _introduce(connection, where, secret, rank, deadline)
    except OSError as error:
        raise _refused(where, rank, error) from None


def _refused(where: str, rank: int, error: OSError) -> TransferError:
    why = "no answer" if isinstance(error, TimeoutError) else error.strerror or error
    return TransferError(f"{where} did not let rank {rank} join: {why}")


def _introduce(connection: socket.socket, where: str, secret: str, rank: int, deadline: float) -> Link:
    """Both ends prove themselves. Raises OSError, with the connection closed; TransferError when the other cannot."""
    try:
        key = bytes.fromhex(secret)
        hello = rank.to_bytes(RANK_BYTES, "little") + secrets.token_bytes(NONCE_BYTES)
        connection.sendall(hello)
        answer = _receive(connection, ANSWER_BYTES, deadline)
        context = answer[:NONCE_BYTES] + hello
        if not hmac.compare_digest(answer[NONCE_BYTES:], _prove(key, b"trainer", context)):
            raise TransferError(f"{where} does not know the group's secret")
        connection.sendall(_prove(key, b"worker", context))
    except BaseException:
        connection.close()
        raise
    return Link(connection, _prove(key, b"link", context), "the trainer", is_trainer=False)


def is_same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket is root's or this user's. True for other sockets."""
    if connection.family != getattr(socket, "AF_UNIX", None):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (0, os.getuid())


def _connect_locally(local_address: str) -> socket.socket | None:
    """To the trainer's Unix socket; None when it is on another machine, in another container, or another user's."""
    if not hasattr(os, "memfd_create"):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(OSError):
        connection.connect(f"\0{local_address}")
        if is_same_user(connection):
            return connection
    connection.close()
    return None


def _receive(connection: socket.socket, num_bytes: int, deadline: float) -> bytes:
    """Raises TimeoutError, OSError."""
    data = b""
    while len(data) < num_bytes:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        received = connection.recv(num_bytes - len(data))
        if not received:
            raise ConnectionResetError("it closed the connection")
        data += received
    return data


def _prove(secret: bytes, role: bytes, context: bytes) -> bytes:
    return hmac.digest(secret, role + b"\0" + context, "sha256")


def _keep_alive(connection: socket.socket) -> None:
    if connection.family == getattr(socket, "AF_UNIX", None):
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
