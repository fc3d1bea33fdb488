"""The ring of slots that carries the trainer's frames through shared memory. Linux only."""

import mmap
import os

import numpy as np

from sync.errors import TransferError
from sync.transport.frames import FRAME_BYTES
from sync.transport.sealed import check_sealed, create_sealed

NUM_SLOTS = 4
# The worker that reads the ring: it stages for all workers of the machine.
LEADER_RANK = 1
RING_BYTES = NUM_SLOTS * FRAME_BYTES


def create_ring() -> tuple[int, np.ndarray]:
    """Create a ring. Returns its descriptor, which the caller closes, and its slots, uint8[NUM_SLOTS, FRAME_BYTES].

    Raises OSError.
    """
    descriptor, memory = create_sealed("tritonlive-push", RING_BYTES)
    return descriptor, _slots(memory)


def map_ring(descriptor: int) -> np.ndarray:
    """The slots of the descriptor's ring, read-only. Closes the descriptor. Raises TransferError when it is no ring."""
    try:
        check_sealed(descriptor, RING_BYTES)
        return _slots(mmap.mmap(descriptor, RING_BYTES, prot=mmap.PROT_READ))
    except OSError as error:
        raise TransferError(f"shared memory: {error}") from None
    finally:
        os.close(descriptor)


def _slots(memory: mmap.mmap) -> np.ndarray:
    return np.frombuffer(memory, dtype=np.uint8).reshape(NUM_SLOTS, FRAME_BYTES)
