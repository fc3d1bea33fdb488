"""Opening a caller's weights as a source."""

from collections.abc import ItemsView, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sync.errors import SourceError

from .checkpoint_source import CheckpointSource
from .names import canonical_names
from .sources import StreamSource, TensorSource, require_tensor
from .weight_source import WeightSource

if TYPE_CHECKING:
    import torch


def open_source(weights: Any) -> WeightSource:
    """A source for weights in any supported form. Raises SourceError for any other object.

    weights: an `nn.Module`, a mapping of name to tensor, pairs of `(name, tensor)`, a path to a checkpoint directory,
    or a `WeightSource`. A list, a tuple or `items()` is read at once; any other iterable is read while it is sent.
    """
    if isinstance(weights, WeightSource):
        return weights
    if isinstance(weights, str | Path):
        return CheckpointSource(weights)
    import torch

    if isinstance(weights, torch.nn.Module):
        from .module_source import open_module

        return open_module(weights)
    if isinstance(weights, Mapping):
        return _open_mapping(weights)
    if isinstance(weights, Sequence | ItemsView):
        return _open_mapping(_mapping_of(weights))
    if isinstance(weights, Iterable):
        return StreamSource(weights)
    raise SourceError(
        f"weights: expected a module, a state dict or pairs of name and tensor, got {type(weights).__name__}"
    )


def _open_mapping(tensors: "Mapping[str, torch.Tensor]") -> WeightSource:
    for pair in tensors.items():
        require_tensor(*pair)
    names = canonical_names(tensors)
    return TensorSource({names[name]: tensor for name, tensor in tensors.items()})


def _mapping_of(pairs: Iterable[Any]) -> "dict[str, torch.Tensor]":
    try:
        listed = [(name, tensor) for name, tensor in pairs]
        tensors = dict(listed)
    except (TypeError, ValueError):
        raise SourceError("weights: an iterable must yield pairs of name and tensor") from None
    if len(tensors) != len(listed):
        names = [name for name, _ in listed]
        raise SourceError(f"weights: yielded twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    return tensors
