"""The handshake: how the trainer and its workers find each other and prove their identity.

    trainer: listens at master_address (TCP) and, for workers on its machine, at a Unix socket
    worker:  connects to the Unix socket if it can, otherwise to the TCP address
    worker → trainer   rank, nonce
    trainer → worker   nonce, HMAC(secret, "trainer", both nonces, rank)
    worker → trainer   HMAC(secret, "worker", both nonces, rank)

Each group has a fresh secret. It travels only in the control call that calls the workers in, which needs the control
key. The messages below reveal nothing of it. At the Unix socket both ends also compare the other process's user with
their own. The key of the link that follows (link.py) depends on both nonces.

A connection that sends nothing gets no byte, and stays open until the trainer leaves. The TCP listener also stays open,
because a replica holds such a connection to notice the trainer's end (tritonlive/backend/weights/trainer_watch.py).

The network must still be trusted: messages and weights are not encrypted (gloo.py).
"""

import hmac
import os
import socket
import struct

from .link import MAC_BYTES

NONCE_BYTES = 32
RANK_BYTES = 4
HELLO_BYTES = RANK_BYTES + NONCE_BYTES
ANSWER_BYTES = NONCE_BYTES + MAC_BYTES
# A lost machine is noticed within half a minute. These are Linux's names; other systems keep their defaults.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


def is_same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket is root's or this user's. True for other sockets."""
    if connection.family != getattr(socket, "AF_UNIX", None):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (0, os.getuid())


def prove(secret: bytes, role: bytes, context: bytes) -> bytes:
    return hmac.digest(secret, role + b"\0" + context, "sha256")


def keep_alive(connection: socket.socket) -> None:
    if connection.family == getattr(socket, "AF_UNIX", None):
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
