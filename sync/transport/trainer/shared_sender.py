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

import os

import numpy as np

from sync.errors import TransferError
from sync.transport.frames import FRAME_BYTES, HEADER_BYTES, FrameSender
from sync.transport.layout import Layout
from sync.transport.link import Code, Link, Message
from sync.transport.ring import NUM_SLOTS
from sync.transport.trainer.worker_links import WorkerLinks
from sync.transport.worker.assembler import Assembler
from sync.transport.worker.frame_receiver import FrameReceiver, ReportBytes
from sync.transport.worker.memory import Memory, MemoryPool
from sync.transport.worker.segments import Segment, SegmentView
from sync.weights.findings import Findings

LEADER_RANK = 1
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
        self._workers.signal(Code.FRAME, [LEADER_RANK], num_bytes=num_bytes)
        if self._num_frames % FRAMES_PER_SIGN == 0:
            self._workers.signal(Code.PROGRESS, self._followers, bytes=self.num_sent)
        self._num_frames += 1
        self.num_sent += num_bytes

    def flush(self) -> None:
        """As the base class."""
        self._wait_until_taken(self._num_frames)

    def hand_over(self) -> None:
        """As the base class: the leader's segment."""
        workers = self._workers
        workers.wait([LEADER_RANK], lambda rank: workers.segment >= 0)
        workers.signal(Code.SEGMENT, self._followers, descriptor=workers.segment)
        workers.close_segment()

    def close(self) -> None:
        """Nothing: the ring goes with its last user."""

    def _wait_until_taken(self, count: int) -> None:
        self._workers.poll(0)  # notice workers that are gone also when nothing must be waited for
        self._workers.wait([LEADER_RANK], lambda rank: self._workers.num_taken[rank] >= count)


class Leader(FrameReceiver):
    """The end of the worker that stages for all."""

    def __init__(self, ring: np.ndarray, link: Link, pool: MemoryPool) -> None:
        """ring: uint8[NUM_SLOTS, FRAME_BYTES], read-only."""
        self._slots = ring
        self._link = link
        self._pool = pool
        self._num_frames = 0
        self._segment: Segment | None = None
        self._assembler: Assembler | None = None

    def prepare(self, layout: Layout, report: ReportBytes) -> None:
        """As the base class."""
        num_bytes, count = layout.num_bytes, len(layout.metas)
        self._segment = self._pool.take(
            Segment, num_bytes, lambda spare: spare.is_free(count), lambda: Segment(num_bytes, count, report)
        )
        self._assembler = Assembler(layout, self._segment.data)

    def take(self, message: Message) -> None:
        """As the base class."""
        num_bytes = int(message.fields["num_bytes"])
        if not HEADER_BYTES <= num_bytes <= FRAME_BYTES:
            raise TransferError(f"shared memory: a frame of {num_bytes} bytes")
        if self._assembler is not None:
            self._assembler.add(self._slots[self._num_frames % NUM_SLOTS][:num_bytes])
        self._num_frames += 1
        self._link.signal(Code.TAKEN)

    def finish(self) -> tuple[Memory, Findings]:
        """As the base class; offers the segment to the followers."""
        if self._segment is None or self._assembler is None:
            raise TransferError("shared memory: no update was announced")
        findings = self._assembler.finish()
        segment, self._segment, self._assembler = self._segment, None, None
        segment.write_report(findings)
        self._link.signal(Code.SEGMENT, descriptor=segment.descriptor)
        return segment, findings

    def discard(self) -> None:
        """As the base class."""
        self._pool.release(self._segment)
        self._segment = self._assembler = None

    def close(self) -> None:
        """Nothing: the ring goes with its last user."""


class Follower(FrameReceiver):
    """The end of a worker that loads what the leader staged."""

    def __init__(self, link: Link, pool: MemoryPool, timeout_s: float) -> None:
        """timeout_s: how long the leader may take to finish its report, once the trainer has sent everything."""
        self._link = link
        self._pool = pool
        self._timeout_s = timeout_s
        self._layout: Layout | None = None

    def prepare(self, layout: Layout, report: ReportBytes) -> None:
        """As the base class: the memory is the leader's."""
        self._layout = layout

    def take(self, message: Message) -> None:
        """Raises TransferError: the leader alone takes frames."""
        raise TransferError("shared memory: a frame came to a worker that does not stage")

    def finish(self) -> tuple[Memory, Findings]:
        """As the base class: what the leader staged and found."""
        if self._layout is None:
            raise TransferError("shared memory: no update was announced")
        layout, self._layout = self._layout, None
        descriptor = self._receive_segment()
        num_bytes, count = layout.num_bytes, len(layout.metas)
        try:
            view = self._pool.take(
                SegmentView,
                num_bytes,
                lambda spare: spare.is_of(descriptor, count),
                lambda: SegmentView(descriptor, num_bytes, count),
            )
        finally:
            os.close(descriptor)
        view.hold()
        return view, view.findings()

    def discard(self) -> None:
        """As the base class: there is none."""
        self._layout = None

    def close(self) -> None:
        """Nothing: the link is closed by itself."""

    def _receive_segment(self) -> int:
        message = self._link.wait(self._timeout_s)
        if message.code is not Code.SEGMENT or message.descriptor < 0:
            raise TransferError(f"shared memory: expected the leader's segment, got {message.code}")
        return message.descriptor
