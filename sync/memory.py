"""The memory that an update's tensors lie in, and the pool that uses it again."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from .buckets import host_buffer
from .errors import TransferError

M = TypeVar("M", bound="Memory")
# One is enough for a worker alone. A worker that stages for others (segments.py) cannot use what they still keep, which
# is up to two versions; a spare that is not needed costs no memory.
MAX_SPARES = 3


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


class MemoryPool:
    """Memory of updates that nobody needs any more; fresh pages are slow. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._spares: Sequence[Memory] = ()

    def take(self, kind: type[M], num_bytes: int, is_usable: Callable[[M], bool], make: Callable[[], M]) -> M:
        """A spare of this kind and size that `is_usable`, else what `make` returns."""
        spares = [spare for spare in self._spares if isinstance(spare, kind) and len(spare.data) == num_bytes]
        usable = next(filter(is_usable, spares), None)
        # The old memory goes before new memory is allocated.
        self._spares = [spare for spare in spares if spare is not usable][1 - MAX_SPARES :]
        del spares
        return usable or make()

    def release(self, memory: Memory | None) -> None:
        """Takes back memory whose tensors nobody needs any more."""
        if memory is not None:
            memory.release()
            self._spares = [*self._spares, memory][-MAX_SPARES:]


def no_memory(num_bytes: int, why: str) -> TransferError:
    """There is none to stage an update in, and what helps."""
    needs = f"no memory for {num_bytes / 1e6:.0f} MB to stage the update in{why and f' ({why})'}"
    return TransferError(f"{needs}; free some there, or push with keep_previous=False")
