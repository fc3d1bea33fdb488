"""The trainer's side of a push by gloo broadcasts, to workers on any machine."""

from collections import deque

import numpy as np
import torch

from sync.transport.frame_buffers import FrameBuffers
from sync.transport.gloo import FRAMES_UNDER_WAY, GlooGroup, Work
from sync.transport.messages import MessageCode, TransportName
from sync.transport.trainer.frame_sender import FrameSender
from sync.transport.trainer.worker_links import WorkerLinks


class BroadcastSender(FrameSender):
    """Broadcasts frames, several at a time."""

    transport = TransportName.GLOO

    def __init__(self, group: GlooGroup, workers: WorkerLinks) -> None:
        self._group = group
        self._workers = workers
        self._frames = FrameBuffers()
        self._frame = torch.empty(0, dtype=torch.uint8)
        self._under_way: deque[tuple[int, Work]] = deque()
        self._num_over = 0

    def free_frame(self) -> np.ndarray:
        """See the base class."""
        self._workers.poll(0)  # read the workers' messages, so that they can send more
        while len(self._under_way) >= FRAMES_UNDER_WAY:
            self._wait_for_oldest()
        self._frame = self._frames.next()
        return self._frame.numpy()

    def send(self, num_bytes: int) -> None:
        """See the base class."""
        self._workers.signal(MessageCode.FRAME, num_bytes=num_bytes)
        self._under_way.append((num_bytes, self._group.broadcast(self._frame[:num_bytes])))

    def flush(self) -> None:
        """See the base class."""
        while self._under_way:
            self._wait_for_oldest()

    def close(self) -> None:
        """Leave the group."""
        self._group.close()

    def _wait_for_oldest(self) -> None:
        num_bytes, work = self._under_way.popleft()
        self._num_over += 1
        # The workers' messages distinguish a slow worker from a stalled one; gloo's operation alone does not.
        self._workers.wait(self._workers.ranks, lambda rank: self._workers.num_taken[rank] >= self._num_over)
        self._group.wait(work)
        self.num_sent += num_bytes
