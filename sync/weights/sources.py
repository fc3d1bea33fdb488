"""Where a push takes its weights from: a module, a state dict, pairs of name and tensor, or a checkpoint on disk.

Sources have the two channels of vLLM's `WeightSource` (`metadata()` and iteration), so its trainer engines take them;
vLLM is not imported: a trainer that pushes over gloo does not need it. Neither is torch, whose import takes
seconds: `python -m sync check` compares metadata of files and servers only.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from sync.errors import SourceError

from .weight_source import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch

Pairs = Iterable[tuple[str, "torch.Tensor"]]


class IndexedSource(WeightSource):
    """A source whose tensors can be read one by one, by name."""

    @abstractmethod
    def full(self, name: str) -> "torch.Tensor":
        """One whole tensor, gathered if it is a shard."""

    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        for meta in self.metadata():
            yield meta.name, self.full(meta.name)


class TensorSource(IndexedSource):
    """Tensors in memory, under the checkpoint's names.

    A module is read through its state dict, which has tied tensors under all their names and the buffers a checkpoint
    holds; `named_parameters()` has neither. FSDP shards (DTensor) are gathered one by one when they are sent.

    With `is_module`, tensors of one memory are tied: the module computes with them so.
    """

    def __init__(self, tensors: "Mapping[str, torch.Tensor]", *, is_module: bool = False) -> None:
        from .samples import Samples

        for pair in tensors.items():
            require_tensor(*pair)
        self._tensors = dict(tensors)
        self._is_module = is_module
        self._samples = Samples()

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta.of(name, tensor) for name, tensor in self._tensors.items()]

    def full(self, name: str) -> "torch.Tensor":
        """One whole tensor, gathered if it is a shard. Keeps a sample of it for `changed`."""
        tensor = self._tensors[name]
        self._samples.take(name, tensor)
        return gathered(tensor)

    def aliases(self) -> dict[str, list[str]]:
        return {name: [n for n in names if n != name] for names in self._same_memory() for name in names}

    def overlaps(self, names: Collection[str]) -> list[tuple[str, str]]:
        if self._is_module:
            return []
        own = [(name, tensor) for name, tensor in self._own_memory() if name in names]
        views = [[name for name in group if name in names] for group in self._same_memory(only_strided=True)]
        pairs = [(group[0], other) for group in views for other in group[1:]]
        spans = sorted(
            (str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, name)
            for name, tensor in own
            if tensor.is_contiguous()
        )
        furthest = ("", 0, 0, "")
        for span in spans:
            if span[0] == furthest[0] and span[1] < furthest[2]:
                pairs.append((furthest[3], span[3]))
            if span[0] != furthest[0] or span[2] > furthest[2]:
                furthest = span
        return pairs

    def changed(self) -> list[str]:
        return self._samples.changed(self._tensors)

    def _same_memory(self, *, only_strided: bool = False) -> list[list[str]]:
        """Groups of names with identical views of memory; with `only_strided` only of non-contiguous views."""
        groups: dict[Any, list[str]] = {}
        for name, own in self._own_memory():
            if only_strided and own.is_contiguous():
                continue
            groups.setdefault((own.device, own.data_ptr(), own.dtype, own.shape, own.stride()), []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def _own_memory(self) -> "Iterator[tuple[str, torch.Tensor]]":
        from .samples import local

        for name, tensor in self._tensors.items():
            own = local(tensor)
            if own.numel() and not own.is_meta:
                yield name, own


class StreamSource(WeightSource):
    """Pairs of name and tensor that are read while they are sent: an export that gathers or converts its tensors.

    Names and shapes come from the served model, and each tensor is checked when it is read. Consecutive tensors may
    share a buffer.

    pairs: an iterator, which can be read once; an iterable; or a function that begins a new export.
    """

    def __init__(self, pairs: "Pairs | Callable[[], Pairs]") -> None:
        self._pairs = pairs
        self._is_read = False

    def metadata(self) -> list[ParamMeta]:
        """Raises SourceError: a stream's names are unknown until it is read."""
        raise SourceError(
            "weights: a stream of pairs has no metadata before it is read, which backends nccl and ipc need in its "
            "order; push a module, a state dict, or a WeightSource with metadata() instead"
        )

    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        if isinstance(self._pairs, Iterator) and self._is_read:
            raise SourceError(
                "weights: the iterator was read by an attempt before; pass StreamSource(f) with a function that makes "
                "a new one"
            )
        self._is_read = True
        pairs = cast("Iterable[Any]", self._pairs() if callable(self._pairs) else self._pairs)
        for pair in pairs:
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise SourceError("weights: an iterable must yield pairs of name and tensor")
            name, tensor = pair
            require_tensor(name, tensor)
            yield name, gathered(tensor)


def require_tensor(name: Any, tensor: Any) -> None:
    """Raises SourceError when they are not a name and a tensor."""
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise SourceError(f"weights: expected names and tensors, got {name!r}: {type(tensor).__name__}")


def gathered(tensor: "torch.Tensor") -> "torch.Tensor":
    """The whole tensor, detached. For a DTensor this is a collective; any other tensor is returned as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return (gather() if callable(gather) else tensor).detach()
