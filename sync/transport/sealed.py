"""Memory without a name that one process writes and others read: of a fixed size, writable nowhere else. Linux only."""

import fcntl
import mmap
import os
from collections.abc import Callable

from sync.errors import TransferError

# Of a shrunken one a read would end the reader by SIGBUS.
SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# Linux 5.1: who maps it from now on cannot write. The fcntl module does not name it.
F_SEAL_FUTURE_WRITE = 0x10
# Allocated at a time: a tenth of a second's worth, so that a model's memory is seen to come.
CHUNK_BYTES = 2**28


def create_sealed(
    name: str, num_bytes: int, report: Callable[[int], None] = lambda num_bytes: None
) -> tuple[int, mmap.mmap]:
    """Its descriptor, which the caller closes, and the one mapping that can write to it. Raises OSError.

    report: called with the bytes allocated so far. A large model's take a minute.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for start in range(0, num_bytes, CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, num_bytes)
            os.posix_fallocate(descriptor, start, end - start)  # too little memory shows now, and not by SIGBUS
            report(end)
        memory = mmap.mmap(descriptor, num_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SIZE_SEALS | F_SEAL_FUTURE_WRITE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, memory


def check_sealed(descriptor: int, num_bytes: int, seals: int = SIZE_SEALS) -> None:
    """Raises TransferError when it is something else than so many bytes with these seals."""
    try:
        has = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        size = os.fstat(descriptor).st_size
    except OSError as error:
        raise TransferError(f"shared memory: {error}") from None
    if has & seals != seals or size != num_bytes:
        raise TransferError(f"shared memory: not {num_bytes} bytes, sealed")
