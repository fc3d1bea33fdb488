"""How the trainer and its workers find each other and prove who they are.

    trainer: listens at master_address (TCP) and, for workers on its machine, at a Unix socket
    worker:  connects to the Unix socket if it is there, else to the other
    trainer → worker   nonce
    worker → trainer   rank, nonce, HMAC(secret, "worker", both nonces, rank)
    trainer → worker   HMAC(secret, "trainer", both nonces, rank)

The secret is made for each group. It travels only in the control call that calls the workers in, which needs the
control key, and nothing of it can be learnt from what is sent here. At the Unix socket both ends also compare the other
process's user with their own. The key of the link that follows (links.py) depends on both nonces.

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

from .addresses import listen
from .closing import Closing
from .errors import TransferError
from .links import MAC_BYTES, POLL_S, Link

NONCE_BYTES = 32
RANK_BYTES = 4
GREETING_BYTES = RANK_BYTES + NONCE_BYTES + MAC_BYTES
# A connection that has not greeted by then is closed.
GREETING_TIMEOUT_S = 10.0
# Connections that have not greeted yet, beyond the workers that are expected; the oldest go first.
MAX_STRANGERS = 256
BACKLOG = 4096
# A machine that is lost without a word is noticed within half a minute. Linux's names; others have their own defaults.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


@dataclass
class _Greeting:
    """A connection that has yet to prove that it is a worker's."""

    connection: socket.socket
    nonce: bytes
    began: float = field(default_factory=time.monotonic)
    data: bytearray = field(default_factory=bytearray)

    def receive(self) -> bool:
        """Read what is there; True when the connection is of no use: it ended, or failed."""
        try:
            data = self.connection.recv(GREETING_BYTES - len(self.data))
        except BlockingIOError:
            return False
        except OSError:
            return True
        self.data += data
        return not data


class TrainerHandshake(Closing):
    """The trainer's end, until all workers have joined."""

    def __init__(self, address: str, port: int, secret: str, *, is_local_wanted: bool = True) -> None:
        """Listen; port 0 picks a free one. Raises TransferError as `listen`."""
        self._secret = bytes.fromhex(secret)
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
        greetings: dict[int, _Greeting] = {}  # by descriptor
        give_up = time.monotonic() + timeout_s
        try:
            while len(links) < num_workers:
                if time.monotonic() > give_up:
                    missing = [str(rank) for rank in range(1, num_workers + 1) if rank not in links]
                    raise TransferError(f"workers {', '.join(missing)} did not join within {timeout_s:g} s")
                self._poll(greetings, links, num_workers)
        except BaseException:
            for link in links.values():
                link.close()
            raise
        finally:
            for greeting in greetings.values():
                greeting.connection.close()
        return links

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.close()

    def _poll(self, greetings: dict[int, _Greeting], links: dict[int, Link], num_workers: int) -> None:
        poll = select.poll()
        for listener in self._listeners:
            poll.register(listener, select.POLLIN)
        for descriptor in greetings:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(POLL_S * 1000):
            greeting = greetings.get(descriptor)
            if greeting is None:
                continue
            is_useless = greeting.receive()
            if is_useless or len(greeting.data) == GREETING_BYTES:
                del greetings[descriptor]
                link = None if is_useless else self._admit(greeting, num_workers, links)
                if link is None:
                    greeting.connection.close()
        for listener in self._listeners:
            self._greet(listener, greetings)
        now = time.monotonic()
        surplus = len(greetings) - num_workers - MAX_STRANGERS
        for place, (descriptor, greeting) in enumerate(list(greetings.items())):
            if place < surplus or now - greeting.began > GREETING_TIMEOUT_S:
                del greetings[descriptor]
                greeting.connection.close()

    @staticmethod
    def _greet(listener: socket.socket, greetings: dict[int, _Greeting]) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            if not is_same_user(connection):
                connection.close()
                return
            greeting = _Greeting(connection, secrets.token_bytes(NONCE_BYTES))
            greetings[connection.fileno()] = greeting
            connection.settimeout(0)
            with suppress(OSError):
                connection.send(greeting.nonce)  # a new connection has room for it

    def _admit(self, greeting: _Greeting, num_workers: int, links: dict[int, Link]) -> Link | None:
        """The link to a worker that has proved itself; None for anyone else, and for a rank that is taken."""
        data = bytes(greeting.data)
        rank_bytes, nonce = data[:RANK_BYTES], data[RANK_BYTES : RANK_BYTES + NONCE_BYTES]
        context = greeting.nonce + nonce + rank_bytes
        if not hmac.compare_digest(data[-MAC_BYTES:], _prove(self._secret, b"worker", context)):
            return None
        rank = int.from_bytes(rank_bytes, "little")
        if rank in links or not 1 <= rank <= num_workers:
            return None
        try:
            greeting.connection.send(_prove(self._secret, b"trainer", context))
        except OSError:
            return None
        _keep_alive(greeting.connection)
        key = _prove(self._secret, b"link", context)
        links[rank] = Link(greeting.connection, key, f"worker {rank}", is_trainer=True)
        return links[rank]


def join(address: str, port: int, local_address: str, secret: str, rank: int, timeout_s: float) -> Link:
    """A worker's link to the trainer. Raises TransferError when there is none, or it does not know the secret.

    Waits until the trainer, which may still call other workers in, has answered; at most `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    connection = _connect_locally(local_address) if local_address else None
    if connection is None:
        try:
            connection = socket.create_connection((address, port), timeout=timeout_s)
        except OSError as error:
            why = error.strerror or error
            raise TransferError(f"no trainer at {address}:{port} within {timeout_s:g} s: {why}") from None
        _keep_alive(connection)
    try:
        their_nonce = _receive(connection, NONCE_BYTES, deadline)
        rank_bytes, nonce = rank.to_bytes(RANK_BYTES, "little"), secrets.token_bytes(NONCE_BYTES)
        context = their_nonce + nonce + rank_bytes
        key = bytes.fromhex(secret)
        connection.sendall(rank_bytes + nonce + _prove(key, b"worker", context))
        proof = _receive(connection, MAC_BYTES, deadline)
        if not hmac.compare_digest(proof, _prove(key, b"trainer", context)):
            raise TransferError(f"who listens at {address}:{port} does not know the group's secret")
    except OSError as error:
        connection.close()
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or error
        raise TransferError(f"the trainer at {address}:{port} did not let rank {rank} join: {why}") from None
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
