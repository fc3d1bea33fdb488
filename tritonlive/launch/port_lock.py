"""Reserve a port among the stacks of a machine: servers bind theirs minutes after the port was found free."""

import errno
import os
import socket
import struct
import time
import weakref
from pathlib import Path

import psutil

PREFIX = "tritonlive/port"
WILDCARDS = frozenset({"0.0.0.0", "::"})
ABSTRACT_SOCKETS = Path("/proc/net/unix")
CREDENTIALS = struct.Struct("3i")  # Linux's ucred: pid, uid, gid


class PortHeldError(Exception):
    """Another stack has reserved the port; `holder` names its process and start time."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class PortLock:
    """The reservation of one port on one address, by an abstract Unix socket of that name.

    The kernel gives such a name to one socket of a network namespace, as it does with ports, and frees it however the
    process ends. There is no file, so nothing can be stale, and users need no common folder.
    """

    def __init__(self, host: str, port: int) -> None:
        """Reserve it. `host` is a numeric address. Raises PortHeldError."""
        name = f"{PREFIX}/{port}/{host}"
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.release = weakref.finalize(self, reservation.close)
        """Frees the port. May be called again; runs by itself when the lock is garbage."""
        try:
            reservation.bind(f"\0{name}")
            reservation.listen()
        except OSError as error:
            self.release()
            if error.errno == errno.EADDRINUSE:
                raise PortHeldError(_describe_holder(name)) from None
            raise
        for other in _reserved_hosts(port) - {host}:
            # A wildcard address takes the port on every address.
            if host in WILDCARDS or other in WILDCARDS:
                self.release()
                raise PortHeldError(_describe_holder(f"{PREFIX}/{port}/{other}"))


def _reserved_hosts(port: int) -> set[str]:
    """Addresses on which any process has reserved the port."""
    start = f"@{PREFIX}/{port}/"
    fields = (line.split() for line in ABSTRACT_SOCKETS.read_text().splitlines())
    return {field[-1].removeprefix(start) for field in fields if field[-1].startswith(start)}


def _describe_holder(name: str) -> str:
    """ "process 1234 (since 17:04:05)", as far as the kernel says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(0.0)
        try:
            client.connect(f"\0{name}")
            pid, _, _ = CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        except OSError:  # it has ended, does not listen yet, or its backlog is full
            return "another process"
    if pid == os.getpid():
        return "this process"
    try:
        since = time.strftime("%H:%M:%S", time.localtime(psutil.Process(pid).create_time()))
    except (psutil.Error, ValueError):  # pid 0: it is in another container
        return "a process of another container"
    return f"process {pid} (since {since})"
