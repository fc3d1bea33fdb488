"""Memory for the frames of broadcasts."""

from collections import deque

import torch

from .frames import FRAME_BYTES
from .gloo import FRAMES_UNDER_WAY
from .layout import host_buffer


class FrameBuffers:
    """Memory for the frames in flight. A buffer is reused when its broadcast is over."""

    def __init__(self) -> None:
        self._frames = deque([torch.empty(0, dtype=torch.uint8)] * FRAMES_UNDER_WAY)

    def next(self) -> torch.Tensor:
        """uint8[FRAME_BYTES]: the buffer whose broadcast started first."""
        frame = self._frames.popleft()
        if not len(frame):
            frame = host_buffer(FRAME_BYTES)
        self._frames.append(frame)
        return frame
