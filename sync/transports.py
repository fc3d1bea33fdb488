"""The two ends of the way that a push's bytes take (broadcasts.py, shared_transfer.py)."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch

from .buckets import Bucket, Pieces
from .closing import Closing
from .findings import Findings
from .memory import Memory

Receive = Callable[[], tuple[Memory, Findings]]
"""Receives an update: memory with its buckets one after another (buckets.cut). Raises TransferError."""


class Sender(Closing):
    """The trainer's end."""

    transport: str
    """What a report calls it."""
    num_sent = 0
    """Bytes that all workers can have."""

    @abstractmethod
    def send(self, pieces: Pieces, num_bytes: int) -> torch.Tensor:
        """One bucket; returns it, uint8[num_bytes], which is there until the next.

        The tensors must stay as they are until `flush`. Raises TransferError.
        """

    @abstractmethod
    def flush(self) -> None:
        """End the update: until all has arrived. Raises TransferError."""


class Receiver(Closing):
    """A worker's end."""

    @abstractmethod
    def prepare(self, buckets: Sequence[Bucket]) -> Receive:
        """Find memory for an update; what this returns receives it.

        Raises TransferError, saying what to do, when there is too little.
        """
