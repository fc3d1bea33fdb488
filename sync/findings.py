"""What whoever received an update found in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from .buckets import Bucket
from .digest import digest
from .finite import is_finite

BYTES_PER_TENSOR = 9


@dataclass(frozen=True)
class Findings:
    """Of each tensor, in the order sent: its digest, and whether it holds neither NaN nor Inf."""

    digests: list[int]
    are_finite: list[bool]

    @classmethod
    def examine(cls, buckets: Sequence[Bucket], arriving: Iterable[torch.Tensor]) -> Self:
        """The buckets' bytes, uint8[num_bytes] each, as they arrive."""
        digests: list[int] = []
        are_finite: list[bool] = []
        for bucket, data in zip(buckets, arriving, strict=True):
            for slot in bucket.slots:
                piece = data[slot.offset : slot.end]
                digests.append(digest(piece))
                are_finite.append(is_finite(piece.numpy(), slot.meta.dtype))
        return cls(digests, are_finite)

    def pack(self) -> np.ndarray:
        """uint8[BYTES_PER_TENSOR * n]: all digests, then all flags."""
        digests = np.array(self.digests, dtype=np.uint64).view(np.uint8)
        return np.concatenate([digests, np.array(self.are_finite, dtype=np.uint8)])

    @classmethod
    def unpack(cls, data: np.ndarray) -> Self:
        """The other way."""
        flags = len(data) // BYTES_PER_TENSOR
        digests = data[: len(data) - flags].view(np.uint64)
        return cls(digests.tolist(), [flag == 1 for flag in data[len(digests.view(np.uint8)) :].tolist()])

    def objection(self, names: Sequence[str], sent: Sequence[int]) -> str:
        """Why the tensors are not to be loaded, `sent` being the trainer's digests; empty when they may be."""
        if broken := [name for name, is_good in zip(names, self.are_finite, strict=True) if not is_good]:
            return f"NaN or Inf in {', '.join(broken)}"
        pairs = zip(names, self.digests, sent, strict=True)
        if damaged := [name for name, mine, theirs in pairs if mine != theirs]:
            return f"not the bytes that were sent: {', '.join(damaged)}"
        return ""
