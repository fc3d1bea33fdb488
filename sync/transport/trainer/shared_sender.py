"""The trainer's side of a push through memory that it shares with the workers on its machine. Linux only.

This saves most of the cost of a broadcast, for which the kernel copies every byte twice per worker.

    trainer   fills the ring's next slot with a frame      ──FRAME──►    leader   copies its parts into its segment
              reuses the slot when the leader has read it  ◄──TAKEN──             and checks them
              passes the complete segment on               ◄─SEGMENT─
                                    followers   ◄─SEGMENT──┘

The leader is the worker with the lowest rank (worker/shared_receivers.py). It stages and checks the update, once for
the whole machine. The other workers, the followers, load from its memory. No memory has a name (sealed.py), so a killed
process leaves nothing behind.
"""

import numpy as np

from sync.transport.messages import MessageCode, TransportName
from sync.transport.ring import LEADER_RANK, NUM_SLOTS
from sync.transport.trainer.frame_sender import FrameSender
from sync.transport.trainer.worker_links import WorkerLinks

# Frames between two PROGRESS messages to the followers, which get no frames.
FRAMES_PER_SIGN = 16


class SharedSender(FrameSender):
    """Writes frames into the ring's slots, in turn."""

    transport = TransportName.SHARED_MEMORY

    def __init__(self, ring: np.ndarray, workers: WorkerLinks) -> None:
        """ring: uint8[NUM_SLOTS, FRAME_BYTES]."""
        self._slots = ring
        self._workers = workers
        self._followers = [rank for rank in workers.ranks if rank != LEADER_RANK]
        self._num_frames = 0

    def free_frame(self) -> np.ndarray:
        """See the base class. Waits for a slot whose frame the leader has read."""
        self._wait_until_taken(self._num_frames - NUM_SLOTS + 1)
        return self._slots[self._num_frames % NUM_SLOTS]

    def send(self, num_bytes: int) -> None:
        """See the base class."""
        self._workers.signal(MessageCode.FRAME, [LEADER_RANK], num_bytes=num_bytes)
        if self._num_frames % FRAMES_PER_SIGN == 0:
            self._workers.signal(MessageCode.PROGRESS, self._followers, bytes=self.num_sent)
        self._num_frames += 1
        self.num_sent += num_bytes

    def flush(self) -> None:
        """See the base class."""
        self._wait_until_taken(self._num_frames)

    def hand_over(self) -> None:
        """See the base class. Sends the leader's segment to the followers."""
        workers = self._workers
        workers.wait([LEADER_RANK], lambda rank: workers.segment >= 0)
        workers.signal(MessageCode.SEGMENT, self._followers, descriptor=workers.segment)
        workers.close_segment()

    def close(self) -> None:
        """Do nothing: the kernel frees the ring with its last user."""

    def _wait_until_taken(self, count: int) -> None:
        self._workers.poll(0)  # notices lost workers even when there is nothing to wait for
        self._workers.wait([LEADER_RANK], lambda rank: self._workers.num_taken[rank] >= count)
