"""A push's bytes by gloo broadcasts: to workers anywhere."""

from collections import deque

import numpy as np
import torch

from sync.errors import TransferError
from sync.transport.frames import FRAME_BYTES, HEADER_BYTES, FrameSender
from sync.transport.gloo import FRAMES_UNDER_WAY, GlooGroup, Work
from sync.transport.layout import Layout, host_buffer
from sync.transport.link import Code, Link, Message
from sync.transport.trainer.worker_links import WorkerLinks
from sync.transport.worker.assembler import Assembler
from sync.transport.worker.frame_receiver import FrameReceiver, ReportBytes
from sync.transport.worker.memory import HostMemory, Memory, MemoryPool
from sync.weights.findings import Findings


class _Frames:
    """Memory for the frames under way, each used again when its broadcast is over."""

    def __init__(self) -> None:
        self._frames = deque([torch.empty(0, dtype=torch.uint8)] * FRAMES_UNDER_WAY)

    def next(self) -> torch.Tensor:
        """uint8[FRAME_BYTES], the one whose broadcast began first."""
        frame = self._frames.popleft()
        if not len(frame):
            frame = host_buffer(FRAME_BYTES)
        self._frames.append(frame)
        return frame


class BroadcastSender(FrameSender):
    """The trainer's end; some broadcasts are under way at a time."""

    transport = "gloo"

    def __init__(self, group: GlooGroup, workers: WorkerLinks) -> None:
        self._group = group
        self._workers = workers
        self._frames = _Frames()
        self._frame = torch.empty(0, dtype=torch.uint8)
        self._under_way: deque[tuple[int, Work]] = deque()
        self._num_over = 0

    def free_frame(self) -> np.ndarray:
        """As the base class."""
        self._workers.poll(0)  # read what they report, so that they can go on reporting
        while len(self._under_way) >= FRAMES_UNDER_WAY:
            self._wait_for_oldest()
        self._frame = self._frames.next()
        return self._frame.numpy()

    def send(self, num_bytes: int) -> None:
        """As the base class."""
        self._workers.signal(Code.FRAME, num_bytes=num_bytes)
        self._under_way.append((num_bytes, self._group.broadcast(self._frame[:num_bytes])))

    def flush(self) -> None:
        """As the base class."""
        while self._under_way:
            self._wait_for_oldest()

    def close(self) -> None:
        """Leave the group."""
        self._group.close()

    def _wait_for_oldest(self) -> None:
        num_bytes, work = self._under_way.popleft()
        self._num_over += 1
        # The workers' answers tell a slow worker from one that stands still; gloo's operation alone does not.
        self._workers.wait(self._workers.ranks, lambda rank: self._workers.num_taken[rank] >= self._num_over)
        self._group.wait(work)
        self.num_sent += num_bytes


class BroadcastReceiver(FrameReceiver):
    """A worker's end."""

    def __init__(self, group: GlooGroup, link: Link, pool: MemoryPool) -> None:
        self._group = group
        self._link = link
        self._pool = pool
        self._frames = _Frames()
        self._under_way: deque[tuple[torch.Tensor, Work]] = deque()
        self._memory: Memory | None = None
        self._assembler: Assembler | None = None

    def prepare(self, layout: Layout, report: ReportBytes) -> None:
        """As the base class."""
        num_bytes = layout.num_bytes
        self._memory = self._pool.take(HostMemory, num_bytes, lambda _: True, lambda: HostMemory(num_bytes))
        self._assembler = Assembler(layout, self._memory.data)

    def take(self, message: Message) -> None:
        """As the base class."""
        num_bytes = int(message.fields["num_bytes"])
        if not HEADER_BYTES <= num_bytes <= FRAME_BYTES:
            raise TransferError(f"gloo: a frame of {num_bytes} bytes; it must have {HEADER_BYTES} to {FRAME_BYTES}")
        if len(self._under_way) >= FRAMES_UNDER_WAY:
            self.settle()
        frame = self._frames.next()[:num_bytes]
        self._under_way.append((frame, self._group.broadcast(frame)))

    def settle(self) -> bool:
        """Wait for the frame that was taken first, and place its parts."""
        if not self._under_way:
            return False
        frame, work = self._under_way.popleft()
        self._group.wait(work)
        if self._assembler is not None:
            self._assembler.add(frame.numpy())
        self._link.signal(Code.TAKEN)
        return True

    def finish(self) -> tuple[Memory, Findings]:
        """As the base class."""
        while self.settle():
            pass
        if self._memory is None or self._assembler is None:
            raise TransferError("gloo: no update was announced")
        findings = self._assembler.finish()
        memory, self._memory, self._assembler = self._memory, None, None
        return memory, findings

    def discard(self) -> None:
        """As the base class. Frames under way have memory of their own, which gloo may still write to."""
        self._pool.release(self._memory)
        self._memory = self._assembler = None

    def close(self) -> None:
        """Leave the group."""
        self._group.close()
