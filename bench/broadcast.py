"""`python -m bench.broadcast RANK PORT CHECKPOINT`: one of two processes that broadcast a checkpoint's bytes over gloo.

It uses torch.distributed alone, without checks and without tensors. The number of bytes and the size of a frame are
those of a push. The benchmark compares the time of a push with the time of this broadcast.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from bench.child import serve
from sync.transport.frames import FRAME_BYTES
from sync.transport.gloo import FRAMES_UNDER_WAY
from sync.transport.layout import Layout, host_buffer
from sync.weights.checkpoint_source import CheckpointSource

TIMEOUT = timedelta(seconds=120)


def join(rank: int, port: int, checkpoint: str) -> Callable[[dict[str, Any]], float]:
    """Join the process group; returns a function that makes one broadcast and returns its seconds."""
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=TIMEOUT)
    memory = host_buffer(Layout(CheckpointSource(checkpoint).metadata()).num_bytes)
    memory.random_(256)
    pieces = memory.split(FRAME_BYTES)
    return lambda question: broadcast(pieces)


def broadcast(pieces: tuple[torch.Tensor, ...]) -> float:
    """Rank 0 sends all pieces, a few at a time. The time ends when rank 1 confirms that it has all of them."""
    began = time.perf_counter()
    under_way: deque[Any] = deque()
    for piece in pieces:
        if len(under_way) >= FRAMES_UNDER_WAY:
            under_way.popleft().wait()
        under_way.append(distributed.broadcast(piece, 0, async_op=True))
    for work in under_way:
        work.wait()
    distributed.broadcast(torch.zeros(1, dtype=torch.uint8), 1)
    return time.perf_counter() - began


if __name__ == "__main__":
    serve(lambda: join(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
