"""The interface of a source of weights, and the metadata of one tensor.

An exporter whose trainer shards its weights implements `WeightSource`. `metadata` must not communicate: it is called
often, and by rank 0 alone. `__iter__` may: every rank of the trainer iterates, in the same order.

FSDP2, whose parameters are DTensors of full shape:

    class Fsdp2Source(WeightSource):
        def __init__(self, model):
            self._tensors = model.state_dict()

        def metadata(self):
            return [ParamMeta.of(name, tensor) for name, tensor in self._tensors.items()]

        def __iter__(self):
            for name, tensor in self._tensors.items():
                yield name, tensor.full_tensor()

(`WeightSync.push(model)` does the same: no class is needed for it.)

DeepSpeed ZeRO-3, whose parameters are empty outside `GatheredParameters`:

    class Zero3Source(WeightSource):
        def __init__(self, engine):
            self._parameters = dict(engine.module.named_parameters())

        def metadata(self):
            return [
                ParamMeta(name, str(parameter.dtype).removeprefix("torch."), tuple(parameter.ds_shape))
                for name, parameter in self._parameters.items()
            ]

        def __iter__(self):
            for name, parameter in self._parameters.items():
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield name, parameter.data

The parameter is partitioned again when the next tensor is read: by then the push has copied it.

Megatron-Bridge, which converts while it gathers, so only the served model knows the shapes:

    class BridgeSource(StreamSource):
        def __init__(self, bridge, model):
            super().__init__(lambda: bridge.export_hf_weights(model, cpu=False, show_progress=False))
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from .dtypes import ITEM_SIZES

if TYPE_CHECKING:
    import torch


class ParamMeta(NamedTuple):
    """Name, dtype and full shape of one checkpoint tensor, with the fields of vLLM's ParamMeta."""

    name: str
    dtype_name: str  # torch's name, as on the wire: "bfloat16"
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: "torch.Tensor") -> "ParamMeta":
        return cls(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    @classmethod
    def from_names(cls, name: str, dtype_name: str, shape: Iterable[int]) -> "ParamMeta":
        """From the fields on the wire. Raises ValueError for a dtype that torch does not have."""
        if dtype_name not in ITEM_SIZES:
            raise ValueError(f"{name}: {dtype_name!r} is not a dtype")
        return cls(name, dtype_name, tuple(shape))

    @property
    def dtype(self) -> "torch.dtype":
        import torch

        return getattr(torch, self.dtype_name)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype_name]

    def __str__(self) -> str:
        return f"{self.dtype_name}[{', '.join(map(str, self.shape))}]"


class WeightSource(ABC):
    """An iterable of `(name, tensor)` that can be read repeatedly, and its metadata."""

    @abstractmethod
    def metadata(self) -> list[ParamMeta]:
        """The tensors that iteration will yield, in order, without gathering or reading data."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Whole tensors, one at a time, on any device. The caller copies each tensor before it reads the next."""

    def aliases(self) -> dict[str, list[str]]:
        """For each name whose tensor has other names too (tied weights): those names."""
        return {}

    def overlaps(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Pairs of these names whose tensors share memory without being declared as tied."""
        return []

    def changed(self) -> list[str]:
        """Names whose tensors changed since the last iteration read them; empty when the source cannot know."""
        return []
