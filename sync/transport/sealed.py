"""Anonymous shared memory of a fixed size that one process writes and others can only read. Linux only."""

import fcntl
import mmap
import os
from collections.abc import Callable

from sync.errors import TransferError

# Reading memory that shrank would kill the reader by SIGBUS.
SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# Linux 5.1: later mappings cannot write. The fcntl module has no name for it.
F_SEAL_FUTURE_WRITE = 0x10
# Allocated at a time: about a tenth of a second, so that a long allocation reports progress.
CHUNK_BYTES = 2**28


def create_sealed(
    name: str, num_bytes: int, report: Callable[[int], None] = lambda num_bytes: None
) -> tuple[int, mmap.mmap]:
    """Create the memory. Returns its descriptor, which the caller closes, and the only writable mapping.

    report: called with the bytes allocated so far; allocating for a large model takes a minute. Raises OSError.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for start in range(0, num_bytes, CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, num_bytes)
            os.posix_fallocate(descriptor, start, end - start)  # a lack of memory raises here, instead of SIGBUS later
            report(end)
        memory = mmap.mmap(descriptor, num_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SIZE_SEALS | F_SEAL_FUTURE_WRITE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, memory


def check_sealed(descriptor: int, num_bytes: int, seals: int = SIZE_SEALS) -> None:
    """Raises TransferError unless the memory has exactly this size and these seals."""
    try:
        has = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        size = os.fstat(descriptor).st_size
    except OSError as error:
        raise TransferError(f"shared memory: {error}") from None
    if has & seals != seals or size != num_bytes:
        raise TransferError(f"shared memory: not {num_bytes} bytes, sealed")
