"""The protocol of what a push takes its weights from, and what it says of one tensor.

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

The parameter is partitioned again when the next tensor is asked for: the push has copied it by then.

Megatron-Bridge, which converts while it gathers, so shapes are known from the served model only:

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
    """Name, dtype and full shape of one checkpoint tensor; what vLLM's ParamMeta has."""

    name: str
    dtype_name: str  # torch's, as the wire has it: "bfloat16"
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: "torch.Tensor") -> "ParamMeta":
        return cls(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    @classmethod
    def from_names(cls, name: str, dtype_name: str, shape: Iterable[int]) -> "ParamMeta":
        """From the form the wire has. Raises ValueError on a dtype torch does not have."""
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
    """A re-iterable stream of `(name, tensor)` and, apart from it, what it will yield."""

    @abstractmethod
    def metadata(self) -> list[ParamMeta]:
        """What iteration yields, in its order, without gathering or reading any data."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Full tensors, one at a time, on any device. The caller copies each one before it asks for the next."""

    def aliases(self) -> dict[str, list[str]]:
        """For a name whose tensor is also there under other names (tied weights): those names."""
        return {}

    def overlaps(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Pairs of these names whose tensors share memory although nothing says that they are tied."""
        return []

    def changed(self) -> list[str]:
        """Names whose tensors changed since the last iteration read them; empty where that cannot be known."""
        return []
