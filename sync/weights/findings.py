"""Result of validating a received update."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from tritonlive.wire.rejection import RejectCode, Rejection

BYTES_PER_TENSOR = 9


@dataclass(frozen=True)
class Findings:
    """The digest of each tensor, and whether it is free of NaN and Inf; in the order announced."""

    digests: list[int]
    are_finite: list[bool]

    def pack(self) -> np.ndarray:
        """uint8[BYTES_PER_TENSOR * n]: all digests, then all flags."""
        digests = np.array(self.digests, dtype=np.uint64).view(np.uint8)
        return np.concatenate([digests, np.array(self.are_finite, dtype=np.uint8)])

    @classmethod
    def unpack(cls, data: np.ndarray) -> Self:
        """Read what `pack` wrote."""
        flags = len(data) // BYTES_PER_TENSOR
        digests = data[: len(data) - flags].view(np.uint64)
        return cls(digests.tolist(), [flag == 1 for flag in data[len(digests.view(np.uint8)) :].tolist()])

    def rejection(self, names: Sequence[str], sent: Sequence[int]) -> Rejection | None:
        """Why the tensors must not be loaded; None when they may be. `sent`: the trainer's digests."""
        if broken := [name for name, is_good in zip(names, self.are_finite, strict=True) if not is_good]:
            return Rejection(RejectCode.NOT_FINITE, f"NaN or Inf in {', '.join(broken)}", broken)
        pairs = zip(names, self.digests, sent, strict=True)
        if damaged := [name for name, mine, theirs in pairs if mine != theirs]:
            return Rejection(RejectCode.DAMAGED, f"not the bytes that were sent: {', '.join(damaged)}", damaged)
        return None
