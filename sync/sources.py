"""Where a push takes its weights from: a module, a state dict, pairs of name and tensor, or a checkpoint on disk.

Sources have the two channels of vLLM's `WeightSource` (`metadata()` and iteration), so its trainer engines take them;
vLLM itself is not imported, since a trainer that pushes over gloo need not have it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .errors import SourceError

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class ParamMeta(NamedTuple):
    """Name, dtype and full shape of one checkpoint tensor; the fields of vLLM's ParamMeta."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @classmethod
    def from_names(cls, name: str, dtype_name: str, shape: Iterable[int]) -> "ParamMeta":
        """From the form the wire has ("bfloat16"). Raises ValueError on a dtype torch does not have."""
        dtype = getattr(torch, dtype_name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{name}: {dtype_name!r} is not a dtype")
        return cls(name, dtype, tuple(shape))

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.dtype_name}[{', '.join(map(str, self.shape))}]"


class WeightSource(ABC):
    """A re-iterable stream of `(name, tensor)` and, apart from it, what it will yield."""

    @abstractmethod
    def metadata(self) -> list[ParamMeta]:
        """What iteration yields, in its order, without gathering or reading any data."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Full tensors, one at a time, on whatever device they are."""

    def aliases(self) -> dict[str, list[str]]:
        """For a name whose tensor is also there under other names (tied weights): those names."""
        return {}

    def select(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Some of the tensors, by name."""
        return {name: tensor for name, tensor in self if name in names}


class TensorSource(WeightSource):
    """Tensors in memory, under the checkpoint's names.

    A module is read through its state dict, which has tied tensors under all their names and the buffers a checkpoint
    holds; `named_parameters()` has neither. FSDP shards (DTensor) are gathered one by one when they are sent.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise SourceError(f"weights: expected names and tensors, got {name!r}: {type(tensor).__name__}")
        self._tensors = dict(tensors)

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
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
            with self._open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    piece = tensors.get_slice(name)
                    dtype = SAFETENSORS_DTYPES.get(piece.get_dtype())
                    if dtype is None:
                        raise SourceError(f"{path.name}: {name}: dtype {piece.get_dtype()} is not known to torch")
                    found.append(ParamMeta(name, dtype, tuple(piece.get_shape())))
        return found

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._read(lambda name: True)

    def select(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        return dict(self._read(lambda name: name in names))

    def _read(self, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
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
    if isinstance(weights, torch.nn.Module):
        return TensorSource(weights.state_dict())
    if isinstance(weights, str | Path):
        return CheckpointSource(weights)
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
