"""Reserve a name among the processes of a machine, for as long as this process lives."""

import errno
import os
import socket
import struct
import time
import weakref
from pathlib import Path

import psutil

ABSTRACT_SOCKETS = Path("/proc/net/unix")
CREDENTIALS = struct.Struct("3i")  # Linux's ucred: pid, uid, gid


class NameHeldError(Exception):
    """Another process has reserved the name.

    `holder` names it and its start time; `pid` is its process id, None where the kernel does not say.
    """

    def __init__(self, name: str) -> None:
        self.pid, self.holder = _find_holder(name)
        super().__init__(self.holder)


class NameLock:
    """The reservation of a name, by an abstract Unix socket of that name.

    The kernel gives such a name to one socket of a network namespace, as it does with ports, and frees it however the
    process ends. There is no file, so nothing can be stale, and users need no common folder. Names have at most 107
    bytes.
    """

    def __init__(self, name: str) -> None:
        """Reserve it. Raises NameHeldError."""
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.release = weakref.finalize(self, reservation.close)
        """Frees the name. May be called again; runs by itself when the lock is garbage."""
        try:
            reservation.bind(f"\0{name}")
            reservation.listen()
        except OSError as error:
            self.release()
            if error.errno == errno.EADDRINUSE:
                raise NameHeldError(name) from None
            raise


def reserved_names(start: str) -> set[str]:
    """What follows `start` in the names that any process has reserved."""
    fields = (line.split() for line in ABSTRACT_SOCKETS.read_text().splitlines())
    return {field[-1].removeprefix(f"@{start}") for field in fields if field[-1].startswith(f"@{start}")}


def _find_holder(name: str) -> tuple[int | None, str]:
    """Its process id, and "process 1234 (since 17:04:05)", as far as the kernel says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(0.0)
        try:
            client.connect(f"\0{name}")
            pid, _, _ = CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        except OSError:  # it has ended, does not listen yet, or its backlog is full
            return None, "another process"
    if pid == os.getpid():
        return pid, "this process"
    try:
        since = time.strftime("%H:%M:%S", time.localtime(psutil.Process(pid).create_time()))
    except (psutil.Error, ValueError):  # pid 0: it is in another container
        return None, "a process of another container"
    return pid, f"process {pid} (since {since})"
