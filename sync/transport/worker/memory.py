"""The memory of an update's tensors, and the pool that reuses it."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch

from sync.errors import TransferError
from sync.transport.layout import host_buffer

M = TypeVar("M", bound="UpdateMemory")


class UpdateMemory(ABC):
    """Holds an update's tensors in `data`, uint8[num_bytes], unchanged until `release`."""

    data: torch.Tensor

    @abstractmethod
    def release(self) -> None:
        """The tensors in it are no longer needed."""


class HostMemory(UpdateMemory):
    """Private memory of this process."""

    def __init__(self, num_bytes: int) -> None:
        """Raises StagingMemoryError when there is too little memory."""
        try:
            self.data = host_buffer(num_bytes)
        except MemoryError:
            raise StagingMemoryError(num_bytes) from None

    def release(self) -> None:
        """Do nothing: no other process uses it."""


class MemoryPool:
    """Keeps released memory for the next updates, because fresh pages are slow.

    max_spares: how many memories the pool keeps; 0 keeps none. A worker that stages for itself alone needs 1, whether
    it keeps versions or not. A worker that also stages for others (segments.py) cannot reuse memory that they still
    hold, and needs one more for each version kept.

    Safe for several threads; no lock is held while memory is allocated.
    """

    def __init__(self, max_spares: int = 1) -> None:
        self._lock = threading.Lock()
        self._spares: list[UpdateMemory] = []
        self._max_spares = max_spares

    @property
    def max_spares(self) -> int:
        return self._max_spares

    @max_spares.setter
    def max_spares(self, value: int) -> None:
        """Drops the oldest spares beyond the new number."""
        with self._lock:
            self._max_spares = value
            self._trim(value)

    def take(self, kind: type[M], num_bytes: int, is_usable: Callable[[M], bool], make: Callable[[], M]) -> M:
        """A spare of this kind and size that `is_usable`; otherwise the result of `make`.

        Drops spares of another kind or size: the next updates will be like this one.
        """
        with self._lock:
            spares = [spare for spare in self._spares if isinstance(spare, kind) and len(spare.data) == num_bytes]
            usable = next(filter(is_usable, spares), None)
            self._spares = [spare for spare in spares if spare is not usable]
            if usable is None:
                self._trim(self._max_spares - 1)  # leaves room for the new memory, which will be released here
        del spares  # frees the old memory before new memory is allocated
        return usable or make()

    def release(self, memory: UpdateMemory | None) -> None:
        """Take back memory whose tensors are no longer needed."""
        if memory is None:
            return
        memory.release()
        with self._lock:
            self._spares.append(memory)
            self._trim(self._max_spares)

    def _trim(self, count: int) -> None:
        self._spares = self._spares[max(0, len(self._spares) - max(0, count)) :]


class StagingMemoryError(TransferError):
    """There is too little memory to stage an update in."""

    def __init__(self, num_bytes: int, why: str = "") -> None:
        needs = f"no memory for {num_bytes / 1e6:.0f} MB to stage the update in{why and f' ({why})'}"
        super().__init__(f"{needs}; free some there, or push with keep_previous=False")
