"""What an update's tensors lie in."""

from abc import ABC, abstractmethod

import torch

from .buckets import host_buffer
from .errors import TransferError


class Memory(ABC):
    """`data`, uint8[num_bytes], stays as it is until `release`."""

    data: torch.Tensor

    @abstractmethod
    def release(self) -> None:
        """Nobody needs the tensors in it any more."""


class HostMemory(Memory):
    """This process's own."""

    def __init__(self, num_bytes: int) -> None:
        """Raises TransferError when there is too little memory."""
        try:
            self.data = host_buffer(num_bytes)
        except MemoryError:
            raise no_memory(num_bytes, "") from None

    def release(self) -> None:
        """Nothing: nobody else knows it."""


def no_memory(num_bytes: int, why: str) -> TransferError:
    """There is none to stage an update in, and what helps."""
    needs = f"no memory for {num_bytes / 1e6:.0f} MB to stage the update in{why and f' ({why})'}"
    return TransferError(f"{needs}; free some there, or push with keep_previous=False")
