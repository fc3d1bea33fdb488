"""The worker's side of the handshake (proofs.py)."""

import hmac
import os
import secrets
import socket
import time
from contextlib import suppress

from sync.errors import TransferError
from sync.transport.link import Link
from sync.transport.proofs import (
    ANSWER_BYTES,
    NONCE_BYTES,
    RANK_BYTES,
    is_same_user,
    keep_alive,
    prove,
)


def join(address: str, port: int, local_address: str, secret: str, rank: int, timeout_s: float) -> Link:
    """A worker's link to the trainer. Raises TransferError when no trainer answers, or it does not know the secret.

    Waits at most `timeout_s` seconds for the trainer's answer: the trainer may still be calling other workers in. A
    trainer of another user closes the connection to its Unix socket; then the worker tries the TCP address.
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
    keep_alive(connection)
    try:
        return _introduce(connection, where, secret, rank, deadline)
    except OSError as error:
        raise _refused(where, rank, error) from None


def _refused(where: str, rank: int, error: OSError) -> TransferError:
    why = "no answer" if isinstance(error, TimeoutError) else error.strerror or error
    return TransferError(f"{where} did not let rank {rank} join: {why}")


def _introduce(connection: socket.socket, where: str, secret: str, rank: int, deadline: float) -> Link:
    """Exchange proofs.

    Raises OSError, or TransferError when the trainer's proof is wrong; the connection is closed then.
    """
    try:
        key = bytes.fromhex(secret)
        hello = rank.to_bytes(RANK_BYTES, "little") + secrets.token_bytes(NONCE_BYTES)
        connection.sendall(hello)
        answer = _receive(connection, ANSWER_BYTES, deadline)
        context = answer[:NONCE_BYTES] + hello
        if not hmac.compare_digest(answer[NONCE_BYTES:], prove(key, b"trainer", context)):
            raise TransferError(f"{where} does not know the group's secret")
        connection.sendall(prove(key, b"worker", context))
    except BaseException:
        connection.close()
        raise
    return Link(connection, prove(key, b"link", context), "the trainer", is_trainer=False)


def _connect_locally(local_address: str) -> socket.socket | None:
    """Connect to the trainer's Unix socket. None when the trainer is elsewhere, or is another user's process."""
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
