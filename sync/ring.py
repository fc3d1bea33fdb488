"""The ring of shared_memory.py: memory without a name that only the process which made it can write to. Linux only."""

import fcntl
import mmap
import os

import numpy as np

from .errors import TransferError

NUM_SLOTS = 4
# Small enough for a processor's cache to hold what was just copied, large enough that telling of it does not count.
SLOT_BYTES = 4 * 2**20
RING_BYTES = NUM_SLOTS * SLOT_BYTES
# Of a shrunken one a read would end the reader by SIGBUS.
SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# Linux 5.1: who maps it from now on cannot write. The fcntl module does not name it.
F_SEAL_FUTURE_WRITE = 0x10


def create_ring() -> tuple[int, np.ndarray]:
    """Its descriptor, which the caller closes, and its slots: uint8[NUM_SLOTS, SLOT_BYTES]. Raises OSError."""
    descriptor = os.memfd_create("tritonlive-push", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, RING_BYTES)  # too little memory shows now, and not by SIGBUS
        memory = mmap.mmap(descriptor, RING_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SIZE_SEALS | F_SEAL_FUTURE_WRITE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, _slots(memory)


def map_ring(descriptor: int) -> np.ndarray:
    """Its slots, read-only; closes the descriptor. Raises TransferError when it is not such a ring."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        if seals & SIZE_SEALS != SIZE_SEALS or os.fstat(descriptor).st_size != RING_BYTES:
            raise TransferError(f"shared memory: not {RING_BYTES} bytes of a fixed size")
        memory = mmap.mmap(descriptor, RING_BYTES, prot=mmap.PROT_READ)
    except OSError as error:
        raise TransferError(f"shared memory: {error}") from None
    finally:
        os.close(descriptor)
    return _slots(memory)


def _slots(memory: mmap.mmap) -> np.ndarray:
    return np.frombuffer(memory, dtype=np.uint8).reshape(NUM_SLOTS, SLOT_BYTES)
