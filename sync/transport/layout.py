"""The positions of an update's tensors in its memory, computed from the announcement alone."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from sync.weights.weight_source import ParamMeta

# Every tensor starts at a multiple of this, so that its bytes can be viewed as any dtype.
ALIGNMENT = 64


class Layout:
    """Places the tensors one after another, in the order announced."""

    def __init__(self, metas: Sequence[ParamMeta]) -> None:
        self.metas = list(metas)
        self.sizes = [meta.num_bytes for meta in self.metas]
        self.offsets = list(accumulate((align(size) for size in self.sizes), initial=0))
        self.num_bytes = self.offsets.pop()
        """Size of memory for all tensors."""

    def view_tensors(self, memory: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """The tensors in uint8 memory[num_bytes], with their names."""
        return [
            (meta.name, memory[at : at + size].view(meta.dtype).view(meta.shape))
            for meta, at, size in zip(self.metas, self.offsets, self.sizes, strict=True)
        ]


def align(offset: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def host_buffer(num_bytes: int) -> torch.Tensor:
    """Uninitialised uint8[num_bytes], from numpy: it asks the kernel for huge pages, which saves page faults."""
    return torch.from_numpy(np.empty(num_bytes, dtype=np.uint8))
