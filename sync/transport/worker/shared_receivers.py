"""The workers' side of a push through shared memory (trainer/shared_sender.py draws both sides). Linux only.

The leader stages the update and checks it, once for the whole machine. The followers load from its memory, and rely on
the report it wrote there (segments.py).
"""

import os

import numpy as np

from sync.errors import TransferError
from sync.transport.frames import FRAME_BYTES, HEADER_BYTES
from sync.transport.layout import Layout
from sync.transport.link import Link
from sync.transport.messages import Message, MessageCode
from sync.transport.ring import NUM_SLOTS
from sync.weights.findings import Findings

from .assembler import Assembler
from .frame_receiver import FrameReceiver, ReportBytes
from .memory import MemoryPool, UpdateMemory
from .segments import Segment, SegmentView


class Leader(FrameReceiver):
    """Stages the update for all workers of the machine."""

    def __init__(self, ring: np.ndarray, link: Link, pool: MemoryPool) -> None:
        """ring: uint8[NUM_SLOTS, FRAME_BYTES], read-only."""
        self._slots = ring
        self._link = link
        self._pool = pool
        self._num_frames = 0
        self._segment: Segment | None = None
        self._assembler: Assembler | None = None

    def prepare(self, layout: Layout, report: ReportBytes) -> None:
        """See the base class."""
        num_bytes, count = layout.num_bytes, len(layout.metas)
        self._segment = self._pool.take(
            Segment, num_bytes, lambda spare: spare.is_free(count), lambda: Segment(num_bytes, count, report)
        )
        self._assembler = Assembler(layout, self._segment.data)

    def take(self, message: Message) -> None:
        """See the base class."""
        num_bytes = int(message.fields["num_bytes"])
        if not HEADER_BYTES <= num_bytes <= FRAME_BYTES:
            raise TransferError(f"shared memory: a frame of {num_bytes} bytes")
        if self._assembler is not None:
            self._assembler.add(self._slots[self._num_frames % NUM_SLOTS][:num_bytes])
        self._num_frames += 1
        self._link.signal(MessageCode.TAKEN)

    def finish(self) -> tuple[UpdateMemory, Findings]:
        """See the base class. Sends the segment, for the followers."""
        if self._segment is None or self._assembler is None:
            raise TransferError("shared memory: no update was announced")
        findings = self._assembler.finish()
        segment, self._segment, self._assembler = self._segment, None, None
        segment.write_report(findings)
        self._link.signal(MessageCode.SEGMENT, descriptor=segment.descriptor)
        return segment, findings

    def discard(self) -> None:
        """See the base class."""
        self._pool.release(self._segment)
        self._segment = self._assembler = None

    def close(self) -> None:
        """Do nothing: the kernel frees the ring with its last user."""


class Follower(FrameReceiver):
    """Loads from the memory in which the leader staged the update."""

    def __init__(self, link: Link, pool: MemoryPool, timeout_s: float) -> None:
        """timeout_s: how long the leader may take to finish its report after the trainer has sent everything."""
        self._link = link
        self._pool = pool
        self._timeout_s = timeout_s
        self._layout: Layout | None = None

    def prepare(self, layout: Layout, report: ReportBytes) -> None:
        """See the base class. Returns the leader's memory."""
        self._layout = layout

    def take(self, message: Message) -> None:
        """Raises TransferError: only the leader gets frames."""
        raise TransferError("shared memory: a worker that does not stage got a frame")

    def finish(self) -> tuple[UpdateMemory, Findings]:
        """See the base class. Returns the leader's memory and findings."""
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
        """See the base class. A follower has no memory before `finish`."""
        self._layout = None

    def close(self) -> None:
        """Do nothing: the link has another owner."""

    def _receive_segment(self) -> int:
        message = self._link.wait(self._timeout_s)
        if message.code is not MessageCode.SEGMENT or message.descriptor < 0:
            raise TransferError(f"shared memory: expected the leader's segment, got {message.code}")
        return message.descriptor
