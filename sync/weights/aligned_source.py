"""An order of tensors that vLLM's packed transfers can unpack.

vLLM packs tensors into a buffer without padding, and the worker views each tensor in place. A float32 tensor behind a
bfloat16 tensor with an odd number of elements is unaligned and cannot be viewed: the worker fails with half of the
model replaced. With the widest dtypes first, every tensor starts at a multiple of its item size.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sync.weights.weight_source import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch


def aligned(source: WeightSource) -> WeightSource:
    """The source itself when every tensor's size is a multiple of the widest item size; otherwise in aligned order."""
    metas = source.metadata()
    widest = max((meta.dtype.itemsize for meta in metas), default=1)
    return source if all(meta.num_bytes % widest == 0 for meta in metas) else AlignedSource(source)


class AlignedSource(WeightSource):
    """Yields the tensors with the widest dtypes first. Reads the source once for each item size."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source

    def metadata(self) -> list[ParamMeta]:
        return sorted(self._source.metadata(), key=lambda meta: -meta.dtype.itemsize)

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
        widths = {meta.dtype.itemsize for meta in self._source.metadata()}
        for width in sorted(widths, reverse=True):
            for name, tensor in self._source:
                if tensor.dtype.itemsize == width:
                    yield name, tensor
