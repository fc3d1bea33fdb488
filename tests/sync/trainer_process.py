"""A trainer process that dies or is interrupted at a chosen point: ADDRESS KEY MODE TRANSPORT."""

import os
import signal
import sys
import time

import torch

from sync import WeightSync

NUM_TENSORS = 24
NUM_ELEMENTS = 2**20  # of float32: 4 MiB


def weights() -> dict[str, torch.Tensor]:
    return {f"layers.{number}": torch.full((NUM_ELEMENTS,), float(number)) for number in range(NUM_TENSORS)}


def main(address: str, key: str, mode: str, transport: str) -> None:
    def progress(sent: int, total: int) -> None:
        if mode == "kill" and sent * 2 > total:
            os.kill(os.getpid(), signal.SIGKILL)
        if mode in ("hang", "interrupt") and sent * 2 > total:
            print("halfway", flush=True)  # noqa: T201 - read by the test
            time.sleep(60)

    is_shared = transport == "shared"
    with WeightSync(address, backend="gloo", control_key=key, timeout=30, shared_memory=is_shared) as client:
        client.push(weights(), "from-trainer", progress=progress)
        print("pushed", flush=True)  # noqa: T201 - read by the test
        if mode == "idle":
            time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
