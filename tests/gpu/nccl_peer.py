"""Joins an NCCL group of two as rank 1 and then does nothing: nccl_peer.py PORT DEVICE."""

import sys
import time

import torch
from vllm.distributed.utils import StatelessProcessGroup

from sync.push.vllm_trainer import create_communicator


def main(port: str, device: str) -> None:
    torch.cuda.set_device(device)
    communicator = create_communicator(StatelessProcessGroup.create("127.0.0.1", int(port), 1, 2))
    time.sleep(600)
    communicator.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
