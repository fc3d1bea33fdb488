"""A push's bytes through memory that the trainer and the workers on its machine share. Linux only.

That saves most of what a broadcast costs: the kernel copies every byte twice for each worker.

    trainer   fills the ring's next slot with a frame      ──FRAME──►    leader   copies its parts into its segment
              fills that slot again when it was taken      ◄──TAKEN──             and examines them
              passes the segment of a whole update on      ◄─SEGMENT─
                                    followers   ◄─SEGMENT──┘

The leader is the worker with the lowest rank: it stages the update and examines it, once for the whole machine. The
others, the followers, load from its memory, and judge by the report it wrote there (segments.py). No memory has a name
(sealed.py), so a killed process leaves nothing behind.
"""

import numpy as np

from sync.transport.messages import MessageCode
from sync.transport.ring import LEADER_RANK, NUM_SLOTS
from sync.transport.trainer.frame_sender import FrameSender
from sync.transport.trainer.worker_links import WorkerLinks

# How many frames go by between two signs of life to the followers, which get no frames.
FRAMES_PER_SIGN = 16


class SharedSender(FrameSender):
    """The trainer's end."""

    transport = "shared memory"

    def __init__(self, ring: np.ndarray, workers: WorkerLinks) -> None:
        """ring: uint8[NUM_SLOTS, FRAME_BYTES]."""
        self._slots = ring
        self._workers = workers
        self._followers = [rank for rank in workers.ranks if rank != LEADER_RANK]
        self._num_frames = 0

    def free_frame(self) -> np.ndarray:
        """As the base class: a slot whose frame the leader has taken."""
        self._wait_until_taken(self._num_frames - NUM_SLOTS + 1)
        return self._slots[self._num_frames % NUM_SLOTS]

    def send(self, num_bytes: int) -> None:
        """As the base class."""
        self._workers.signal(MessageCode.FRAME, [LEADER_RANK], num_bytes=num_bytes)
        if self._num_frames % FRAMES_PER_SIGN == 0:
            self._workers.signal(MessageCode.PROGRESS, self._followers, bytes=self.num_sent)
        self._num_frames += 1
        self.num_sent += num_bytes

    def flush(self) -> None:
        """As the base class."""
        self._wait_until_taken(self._num_frames)

    def hand_over(self) -> None:
        """As the base class: the leader's segment."""
        workers = self._workers
        workers.wait([LEADER_RANK], lambda rank: workers.segment >= 0)
        workers.signal(MessageCode.SEGMENT, self._followers, descriptor=workers.segment)
        workers.close_segment()

    def close(self) -> None:
        """Nothing: the ring goes with its last user."""

    def _wait_until_taken(self, count: int) -> None:
        self._workers.poll(0)  # notice workers that are gone also when nothing must be waited for
        self._workers.wait([LEADER_RANK], lambda rank: self._workers.num_taken[rank] >= count)
