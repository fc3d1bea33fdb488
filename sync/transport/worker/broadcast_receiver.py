"""The worker's side of a push by gloo broadcasts."""

from collections import deque

import torch

from sync.errors import TransferError
from sync.transport.frame_buffers import FrameBuffers
from sync.transport.frames import FRAME_BYTES, HEADER_BYTES
from sync.transport.gloo import FRAMES_UNDER_WAY, GlooGroup, Work
from sync.transport.layout import Layout
from sync.transport.link import Link
from sync.transport.messages import Message, MessageCode
from sync.weights.findings import Findings

from .assembler import Assembler
from .frame_receiver import FrameReceiver, ReportBytes
from .memory import HostMemory, MemoryPool, UpdateMemory


class BroadcastReceiver(FrameReceiver):
    """Receives broadcast frames, several at a time, and assembles the update from them."""

    def __init__(self, group: GlooGroup, link: Link, pool: MemoryPool) -> None:
        self._group = group
        self._link = link
        self._pool = pool
        self._frames = FrameBuffers()
        self._under_way: deque[tuple[torch.Tensor, Work]] = deque()
        self._memory: UpdateMemory | None = None
        self._assembler: Assembler | None = None

    def prepare(self, layout: Layout, report: ReportBytes) -> None:
        """See the base class."""
        num_bytes = layout.num_bytes
        self._memory = self._pool.take(HostMemory, num_bytes, lambda _: True, lambda: HostMemory(num_bytes))
        self._assembler = Assembler(layout, self._memory.data)

    def take(self, message: Message) -> None:
        """See the base class."""
        num_bytes = int(message.fields["num_bytes"])
        if not HEADER_BYTES <= num_bytes <= FRAME_BYTES:
            raise TransferError(f"gloo: a frame of {num_bytes} bytes; it must have {HEADER_BYTES} to {FRAME_BYTES}")
        if len(self._under_way) >= FRAMES_UNDER_WAY:
            self.settle()
        frame = self._frames.next()[:num_bytes]
        self._under_way.append((frame, self._group.broadcast(frame)))

    def settle(self) -> bool:
        """Wait for the oldest frame, and copy its parts into the update."""
        if not self._under_way:
            return False
        frame, work = self._under_way.popleft()
        self._group.wait(work)
        if self._assembler is not None:
            self._assembler.add(frame.numpy())
        self._link.signal(MessageCode.TAKEN)
        return True

    def finish(self) -> tuple[UpdateMemory, Findings]:
        """See the base class."""
        while self.settle():
            pass
        if self._memory is None or self._assembler is None:
            raise TransferError("gloo: no update was announced")
        findings = self._assembler.finish()
        memory, self._memory, self._assembler = self._memory, None, None
        return memory, findings

    def discard(self) -> None:
        """See the base class. Frames in flight have separate memory, which gloo may still write to."""
        self._pool.release(self._memory)
        self._memory = self._assembler = None

    def close(self) -> None:
        """Leave the group."""
        self._group.close()
