"""Memory in which one worker of a machine stages an update, and from which the other workers load it. Linux only.

    leader    Segment      writes the tensors, then its report about them; sends the descriptor
    follower  SegmentView  reads both

A follower holds a lock on a segment (flock, for reading) while it needs the tensors. The leader reuses a segment only
when no worker holds it; otherwise it allocates a new one. A killed process leaves no lock.
"""

import fcntl
import mmap
import os
import weakref
from collections.abc import Callable

import numpy as np
import torch

from sync.errors import TransferError
from sync.transport.sealed import F_SEAL_FUTURE_WRITE, SIZE_SEALS, check_sealed, create_sealed
from sync.transport.worker.memory import StagingMemoryError, UpdateMemory
from sync.weights.findings import BYTES_PER_TENSOR, Findings


class Segment(UpdateMemory):
    """The leader's mapping, the only one that can write."""

    def __init__(
        self, num_bytes: int, num_tensors: int, report: Callable[[int], None] = lambda num_bytes: None
    ) -> None:
        """report: called with the bytes allocated so far. Raises StagingMemoryError when there is too little memory."""
        size = _size(num_bytes, num_tensors)
        try:
            self.descriptor, memory = create_sealed("tritonlive-update", size, report)
        except OSError as error:
            raise StagingMemoryError(size, str(error.strerror)) from None
        weakref.finalize(self, os.close, self.descriptor)
        self.data, self._findings = _split(memory, num_bytes, num_tensors)

    def is_free(self, num_tensors: int) -> bool:
        """Whether it fits that many tensors, and no follower holds it."""
        if len(self._findings) != num_tensors * BYTES_PER_TENSOR:
            return False
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        return True

    def write_report(self, findings: Findings) -> None:
        """Write the findings, for the followers."""
        np.copyto(self._findings, findings.pack())

    def release(self) -> None:
        """Do nothing: the leader holds no lock."""


class SegmentView(UpdateMemory):
    """A follower's mapping of a segment."""

    def __init__(self, descriptor: int, num_bytes: int, num_tensors: int) -> None:
        """Map the segment of the descriptor, which stays open. Raises TransferError when it is no segment."""
        size = _size(num_bytes, num_tensors)
        check_sealed(descriptor, size, SIZE_SEALS | F_SEAL_FUTURE_WRITE)
        try:
            # Opened again: a lock belongs to one open file description, and this descriptor shares the leader's.
            self.descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            # Closed but not unlocked: unlocking in a forked child would end this process's lock.
            weakref.finalize(self, os.close, self.descriptor)
            # Private, because torch needs writable memory. Pages that are never written stay shared with the leader.
            memory = mmap.mmap(self.descriptor, size, flags=mmap.MAP_PRIVATE)
        except OSError as error:
            raise TransferError(f"shared memory: {error}") from None
        self.data, self._findings = _split(memory, num_bytes, num_tensors)

    def is_of(self, descriptor: int, num_tensors: int) -> bool:
        """Whether this maps the descriptor's segment, with that many tensors."""
        is_same = os.path.sameopenfile(self.descriptor, descriptor)
        return is_same and len(self._findings) == num_tensors * BYTES_PER_TENSOR

    def hold(self) -> None:
        """Keep the leader from writing until `release`. Raises BlockingIOError when the leader is about to write."""
        fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def findings(self) -> Findings:
        """The leader's findings."""
        return Findings.unpack(self._findings)

    def release(self) -> None:
        """Let the leader write to it again."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)


def _size(num_bytes: int, num_tensors: int) -> int:
    return max(1, num_bytes + num_tensors * BYTES_PER_TENSOR)  # empty memory cannot be mapped


def _split(memory: mmap.mmap, num_bytes: int, num_tensors: int) -> tuple[torch.Tensor, np.ndarray]:
    """The tensors' bytes, uint8[num_bytes], and the bytes of the findings."""
    whole = np.frombuffer(memory, dtype=np.uint8)
    return torch.from_numpy(whole[:num_bytes]), whole[num_bytes : num_bytes + num_tensors * BYTES_PER_TENSOR]
