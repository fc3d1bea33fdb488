"""`python -m bench.nccl_broadcast RANK PORT BYTES`: one of two processes that broadcast over vLLM's NCCL.

The number of bytes and the size of a buffer are those of a push. Never run: no GPU was available.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.child import serve

BUFFER_BYTES = 2**30


def join(rank: int, port: int, num_bytes: int) -> Callable[[dict[str, Any]], float]:
    """Join the process group; returns a function that makes one broadcast and returns its seconds."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup

    device = torch.device("cuda", min(rank, torch.cuda.device_count() - 1))
    torch.cuda.set_device(device)
    group = StatelessProcessGroup.create("127.0.0.1", port, rank, 2)
    communicator = PyNcclCommunicator(group, device)
    buffers = [torch.zeros(BUFFER_BYTES, dtype=torch.uint8, device=device) for _ in range(2)]
    sizes = [min(BUFFER_BYTES, num_bytes - sent) for sent in range(0, num_bytes, BUFFER_BYTES)]

    def broadcast(_question: dict[str, Any]) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for number, size in enumerate(sizes):
            communicator.broadcast(buffers[number % 2][:size], 0)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    return broadcast


if __name__ == "__main__":
    serve(lambda: join(*map(int, sys.argv[1:])))
