"""A trainer that is killed in the middle of a push: trainer.py TARGET WEIGHTS.safetensors BACKEND DEVICE TIMEOUT."""

import os
import signal
import sys
from collections.abc import Iterator

import torch
from safetensors.torch import load_file

from sync import WeightSync
from sync.weights.check import FittedSource


def main(target: str, weights: str, backend: str, device: str, timeout: str) -> None:
    torch.cuda.set_device(device)
    tensors = load_file(weights, device)
    whole = FittedSource.__iter__

    def half(self: FittedSource) -> Iterator[tuple[str, torch.Tensor]]:
        for index, item in enumerate(whole(self)):
            if index > len(tensors) // 2:
                torch.cuda.synchronize()
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    FittedSource.__iter__ = half
    with WeightSync(target, backend=backend, timeout=float(timeout), lease=5) as sync:  # ty: ignore[invalid-argument-type]
        sync.push(tensors, "half")


if __name__ == "__main__":
    main(*sys.argv[1:])
