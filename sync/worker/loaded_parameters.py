"""The checkpoint tensors that a served model loads, found by running its own `load_weights` over meta tensors.

During the run every layer holds, on the meta device, the tensors that vLLM loads into (`restore_metadata` of its
layerwise reload: before quantisation and repacking). Copies into them are recorded, and nothing is allocated. The
layers get their own tensors back, after an error too. So vLLM itself answers, for this rank, which names are merged,
fused, renamed or ignored: a name that reaches no tensor here belongs to another rank, or to none.

This module and loading.py hold everything that depends on vLLM's reload.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload.layerwise import _get_original_loader, get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import SKIP_MODULES, SKIP_TENSORS, to_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

from sync.weights.dtypes import CASTABLE, widest
from sync.weights.weight_source import ParamMeta

# Operations whose result has the values of what they are given, and at most its precision.
_COPIES = frozenset({"clone", "_to_copy", "cat", "stack", "index", "index_select", "copy_"})
# Operations whose result has nothing of what they are given but its shape.
_FACTORIES = frozenset({"empty_like", "zeros_like", "ones_like", "full_like", "new_empty", "new_zeros", "new_full"})
_WRITES = frozenset({"copy_", "fill_", "set_", "index_put_", "index_copy_", "scatter_"})


class UntraceableError(Exception):
    """The model's loader cannot be traced over meta tensors."""


@dataclass(frozen=True)
class LoadedParameter:
    """Where a checkpoint's tensor goes on this rank."""

    dtype_name: str
    """the parameter's dtype before quantisation; the wider of the parameter's and the checkpoint's when the loader
    computes with the tensor"""
    parameters: tuple[str, ...]
    """the names, in the model, of the tensors that it reaches; tied tensors share a name"""


@dataclass(frozen=True)
class _Origin:
    """The checkpoint's tensors that a tensor was made of; `is_copy` while it has their values, in whatever order."""

    names: frozenset[str]
    is_copy: bool


def loaded_parameters(model: torch.nn.Module, metas: Sequence[ParamMeta]) -> dict[str, LoadedParameter]:
    """The checkpoint's tensors that the model loads on this rank, by name. Missing names are not loaded here.

    Raises UntraceableError, with the model unchanged, when its loader cannot be traced: it reads tensors' values.
    """
    owners = _owners(model)
    with _on_meta(model) as targets:
        trace = _LoadTrace(targets)
        try:
            with disable_mtp_completeness_check(), torch.no_grad(), trace:
                model.load_weights(trace.checkpoint(metas))  # ty: ignore[not-callable]
        except Exception as error:
            raise UntraceableError(f"{type(error).__name__}: {error}") from error
    stored = {meta.name: meta.dtype_name for meta in metas}
    found: dict[str, LoadedParameter] = {}
    for name, reached in trace.reached.items():
        dtype = widest(*(str(targets[target].dtype).removeprefix("torch.") for target in reached))
        if not all(reached.values()) and {stored[name], dtype} <= CASTABLE:
            dtype = widest(dtype, stored[name])
        found[name] = LoadedParameter(dtype, tuple(owners.get(target, target) for target in reached))
    _require_filled(targets, owners, found)
    return found


def _require_filled(
    targets: dict[str, torch.Tensor], owners: dict[str, str], found: dict[str, LoadedParameter]
) -> None:
    """Raises UntraceableError when a weight got no tensor: the trace has missed how it is loaded.

    A name that seems to reach nothing would be left out of pushes. Two kinds may stay empty: scales, which quantised
    models have without the checkpoint, and buffers, which are computed.
    """
    reached = {parameter for loaded in found.values() for parameter in loaded.parameters}
    empty = [
        name
        for name, tensor in targets.items()
        if isinstance(tensor, torch.nn.Parameter)
        and tensor.numel()
        and name.rpartition(".")[2].endswith(("weight", "bias"))
        and owners.get(name, name) not in reached
    ]
    if empty:
        raise UntraceableError(f"no tensor of the checkpoint was seen to reach {', '.join(empty[:5])}")
    if not reached:
        raise UntraceableError("no tensor of the checkpoint was seen to reach the model")


def _owners(model: torch.nn.Module) -> dict[str, str]:
    """For each tensor of the model, the first name of a tensor in the same memory."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(tensor.data_ptr(), name) for name, tensor in named if tensor.data_ptr()}


class _LoadTrace(TorchDispatchMode):
    """Follows the checkpoint's tensors through views, copies and computations into the model's."""

    def __init__(self, targets: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.reached: dict[str, dict[str, bool]] = {}  # by checkpoint name, then by model name: whether by copies only
        self._targets = {_storage(tensor): name for name, tensor in targets.items()}
        self._origins: dict[int, _Origin] = {}
        self._made: set[int] = set()
        self._alive: list[torch.Tensor] = []  # a freed storage's address could be reused
        self._looked_at: _Origin | None = (
            None  # origin of the value that was read last, which may be filled in elsewhere
        )

    def checkpoint(self, metas: Sequence[ParamMeta]) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's tensors on the meta device; single values are real zeros, since loaders read them."""
        for meta in metas:
            is_single = meta.shape in ((), (1,))
            make = torch.zeros if is_single and meta.dtype.itemsize > 1 else torch.empty
            tensor = make(meta.shape, dtype=meta.dtype, device="cpu" if is_single else "meta")
            self._alive.append(tensor)
            self._made.add(_storage(tensor))
            self._origins[_storage(tensor)] = _Origin(frozenset({meta.name}), is_copy=True)
            yield meta.name, tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        origin = self._joined(given, is_copy=True)
        for written in _written(func._schema, args, kwargs or {}):
            self._write(name, written, [tensor for tensor in given if tensor is not written])
        result = func(*args, **(kwargs or {}))
        if name == "_local_scalar_dense":
            self._looked_at = origin
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor, given, origin, name)
        return result

    def _joined(self, tensors: Sequence[torch.Tensor], *, is_copy: bool) -> _Origin | None:
        found = [self._origins[key] for key in map(_storage, tensors) if key in self._origins]
        if not found:
            return None
        return _Origin(
            frozenset().union(*(origin.names for origin in found)), is_copy and all(o.is_copy for o in found)
        )

    def _follow(self, tensor: torch.Tensor, given: list[torch.Tensor], origin: _Origin | None, name: str) -> None:
        key = _storage(tensor)
        if key in self._origins or key in self._targets or key in map(_storage, given):
            return
        self._alive.append(tensor)
        self._made.add(key)
        if origin is not None and name not in _FACTORIES:
            self._origins[key] = _Origin(origin.names, origin.is_copy and name in _COPIES)

    def _write(self, name: str, written: torch.Tensor, sources: list[torch.Tensor]) -> None:
        """Record a write in place, to a tensor of the model or to a temporary one."""
        key = _storage(written)
        brought = self._joined(sources, is_copy=name in _WRITES)
        if brought is None and name == "fill_":
            brought, self._looked_at = self._looked_at, None
        if key in self._targets:
            for each in brought.names if brought else ():
                known = self.reached.setdefault(each, {})
                target = self._targets[key]
                known[target] = known.get(target, True) and brought is not None and brought.is_copy
        elif key not in self._made and not written.is_meta:
            raise UntraceableError("its loader writes to a tensor that is neither a parameter nor a buffer")
        elif brought is not None:
            was = self._origins.get(key)
            names = brought.names | (was.names if was else frozenset())
            self._origins[key] = _Origin(names, brought.is_copy and (was is None or was.is_copy))


def _written(schema: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """The tensors that an operation changes."""
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _storage(tensor: torch.Tensor) -> int:
    """An address that all views of one memory share, on the meta device too."""
    return tensor.untyped_storage()._cdata


@contextmanager
def _on_meta(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Give every layer meta tensors to load into; at the end the layers get their own tensors back.

    Yields the meta tensors by name. Raises UntraceableError when a reload is running: its tensors would mix with these.
    """
    layers = [(path, layer) for path, layer in model.named_modules() if type(layer).__name__ not in SKIP_MODULES]
    if any(get_layerwise_info(layer).can_load() for _, layer in layers):
        raise UntraceableError("a load is running")
    before = [(layer, _Snapshot(layer)) for _, layer in layers]
    targets: dict[str, torch.Tensor] = {}
    try:
        for path, layer in layers:
            for name, tensor in _place_load_tensors(layer).items():
                targets[f"{path}.{name}" if path else name] = tensor
        yield targets
    finally:
        for layer, snapshot in before:
            snapshot.restore(layer)


def _place_load_tensors(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Replace the layer's tensors by meta tensors to load into; returns these by name.

    vLLM loads some tensors in place, so their own dtype counts. Of these, tables of integers (which expert is where)
    stay as they are: loaders only read them.
    """
    parameters, buffers = get_layerwise_info(layer).restore_metadata
    loaded: dict[str, torch.Tensor] = {}
    for own, restored in ((layer._parameters, parameters), (layer._buffers, buffers)):
        is_gone = {name for name, tensor in own.items() if tensor is None and name not in restored}
        stay = {name: tensor for name, tensor in own.items() if name in SKIP_TENSORS or name in is_gone}
        own.clear()
        for name, tensor in {**restored, **stay}.items():
            if tensor is not None and not (name in stay and not tensor.is_floating_point()):
                tensor = loaded[name] = _load_tensor(tensor, layer)
            own[name] = tensor  # ty: ignore[invalid-assignment] - a parameter's class and attributes are its own
    return loaded


def _load_tensor(tensor: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """A meta tensor of the same kind, with vLLM's original loader instead of a reload's wrapper."""
    copy = restore_layer_refs(to_meta_tensor(tensor), layer)
    copy.data = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    if hasattr(copy, "weight_loader"):
        copy.weight_loader = _get_original_loader(copy)  # ty: ignore[invalid-assignment] - vLLM's attribute
    return copy


class _Snapshot:
    """A layer's attributes, in their order."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._attributes = dict(layer.__dict__)
        self._contents = {name: dict(self._attributes[name]) for name in ("_parameters", "_buffers", "_modules")}
        self._non_persistent = set(layer._non_persistent_buffers_set)

    def restore(self, layer: torch.nn.Module) -> None:
        layer.__dict__.clear()
        layer.__dict__.update(self._attributes)
        for name, content in self._contents.items():
            held = self._attributes[name]
            held.clear()
            held.update(content)
        layer._non_persistent_buffers_set.clear()
        layer._non_persistent_buffers_set.update(self._non_persistent)
