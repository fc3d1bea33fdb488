"""Where a push takes its weights from: a module, a state dict, pairs of name and tensor, or a checkpoint on disk.

Sources have the two channels of vLLM's `WeightSource` (`metadata()` and iteration), so its trainer engines take them;
vLLM itself is not imported, since a trainer that pushes over gloo need not have it. Neither is torch, which takes
seconds, before there are tensors: `python -m sync check` compares what files and servers say of theirs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import SourceError

if TYPE_CHECKING:
    import torch

SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
# Bytes of one element, by torch's name of the dtype.
ITEM_SIZES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    "float4_e2m1fn_x2": 1,
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32", "complex32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}


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
        """Full tensors, one at a time, on whatever device they are."""

    def aliases(self) -> dict[str, list[str]]:
        """For a name whose tensor is also there under other names (tied weights): those names."""
        return {}

    def select(self, names: Collection[str]) -> "dict[str, torch.Tensor]":
        """Some of the tensors, by name."""
        return {name: tensor for name, tensor in self if name in names}


class TensorSource(WeightSource):
    """Tensors in memory, under the checkpoint's names.

    A module is read through its state dict, which has tied tensors under all their names and the buffers a checkpoint
    holds; `named_parameters()` has neither. FSDP shards (DTensor) are gathered one by one when they are sent.
    """

    def __init__(self, tensors: "Mapping[str, torch.Tensor]") -> None:
        import torch

        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise SourceError(f"weights: expected names and tensors, got {name!r}: {type(tensor).__name__}")
        self._tensors = dict(tensors)

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta.of(name, tensor) for name, tensor in self._tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        for name, tensor in self._tensors.items():
            gather = getattr(tensor, "full_tensor", None)
            yield name, (gather() if callable(gather) else tensor).detach()

    def aliases(self) -> dict[str, list[str]]:
        groups: dict[Any, list[str]] = {}
        for name, tensor in self._tensors.items():
            if tensor.numel() and not hasattr(tensor, "full_tensor"):
                groups.setdefault((tensor.device, tensor.data_ptr(), tensor.shape), []).append(name)
        return {name: [n for n in names if n != name] for names in groups.values() if len(names) > 1 for name in names}


class CheckpointSource(WeightSource):
    """A directory of safetensors files, read tensor by tensor: memory holds one of them at a time."""

    def __init__(self, folder: str | Path) -> None:
        from safetensors import safe_open

        self._open = safe_open
        self._files = checkpoint_files(Path(folder))

    def metadata(self) -> list[ParamMeta]:
        found: list[ParamMeta] = []
        for path in self._files:
            with self._open(path, framework="numpy") as tensors:  # read is its header; "pt" would import torch
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    piece = tensors.get_slice(name)
                    dtype_name = SAFETENSORS_DTYPES.get(piece.get_dtype())
                    if dtype_name is None:
                        raise SourceError(f"{path.name}: {name}: dtype {piece.get_dtype()} is not known to torch")
                    found.append(ParamMeta(name, dtype_name, tuple(piece.get_shape())))
        return found

    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        yield from self._read(lambda name: True)

    def select(self, names: Collection[str]) -> "dict[str, torch.Tensor]":
        return dict(self._read(lambda name: name in names))

    def _read(self, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, "torch.Tensor"]]:
        for path in self._files:
            with self._open(path, framework="pt") as tensors:
                for name in filter(is_wanted, tensors.keys()):
                    yield name, tensors.get_tensor(name)


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint. Raises SourceError when there are none.

    The index names them where there is one: a folder may hold the same weights again in another layout.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        import json

        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise SourceError(f"{folder}: {index.name} names files that are not there: {', '.join(missing)}")
        return [folder / shard for shard in shards]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SourceError(f"{folder}: no *.safetensors there; other formats are pickles and are not read")
    return files


def open_source(weights: Any) -> WeightSource:
    """A source over what the caller has.

    Takes an `nn.Module`, a mapping of name to tensor, an iterable of `(name, tensor)` (which is read to its end at
    once, so it holds references to all tensors), a path to a checkpoint directory, or a `WeightSource`.
    """
    if isinstance(weights, WeightSource):
        return weights
    if isinstance(weights, str | Path):
        return CheckpointSource(weights)
    import torch

    if isinstance(weights, torch.nn.Module):
        return TensorSource(weights.state_dict())
    if isinstance(weights, Mapping):
        return TensorSource(weights)
    if isinstance(weights, Iterable):
        try:
            pairs = [(name, tensor) for name, tensor in weights]
        except (TypeError, ValueError):
            raise SourceError("weights: an iterable must yield pairs of name and tensor") from None
        tensors = dict(pairs)
        if len(tensors) != len(pairs):
            names = [name for name, _ in pairs]
            raise SourceError(f"weights: yielded twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
        return TensorSource(tensors)
    raise SourceError(
        f"weights: expected a module, a state dict or pairs of name and tensor, got {type(weights).__name__}"
    )
