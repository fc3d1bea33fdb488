"""PEFT's LoRA layers as merged weights, tensor by tensor, without changing the trainer's module.

PEFT replaces a layer P by one that has the layer as `P.base_layer` and, for each adapter a, `P.lora_A.a.weight` [r, in]
and `P.lora_B.a.weight` [out, r] (embeddings: `P.lora_embedding_A.a` [r, num], `P.lora_embedding_B.a` [dim, r]); it
computes base + scaling · B · A. A fully trained module is `P.original_module` beside
`P.modules_to_save.a`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sync.errors import SourceError

from .dtypes import CASTABLE, widest
from .names import plain_names, without_wrappers
from .sources import IndexedSource, TensorSource
from .weight_source import ParamMeta

if TYPE_CHECKING:
    import torch

ROOT = "base_model.model."
BASE = "base_layer."
ADAPTER_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
REMEDY = "merge it first (merge_adapter(), merge_and_unload()), or serve it beside the base model with push_adapter()"


@dataclass(frozen=True)
class Delta:
    """The change of a weight by one adapter: scaling · B · A, transposed when the layer holds [in, out]."""

    a: str
    b: str
    scaling: float
    is_transposed: bool


@dataclass(frozen=True)
class Merged:
    """A weight under its checkpoint's name: the base layer's tensor, and the active adapters' deltas."""

    base: str
    deltas: tuple[Delta, ...] = ()


class MergedLora(IndexedSource):
    """A PEFT model's weights with its active adapters merged, computed in float32, one tensor at a time."""

    def __init__(self, tensors: TensorSource, weights: Mapping[str, Merged]) -> None:
        self._tensors = tensors
        self._weights = dict(weights)

    def metadata(self) -> list[ParamMeta]:
        metas = {meta.name: meta for meta in self._tensors.metadata()}
        found = []
        for name, weight in self._weights.items():
            base = metas[weight.base]
            dtype = widest(base.dtype_name, "float32") if weight.deltas else base.dtype_name
            found.append(ParamMeta(name, dtype, base.shape))
        return found

    def full(self, name: str) -> "torch.Tensor":
        weight = self._weights[name]
        base = self._tensors.full(weight.base)
        if not weight.deltas:
            return base
        merged = base.to(_wide(base), copy=True)
        for delta in weight.deltas:
            a, b = (self._tensors.full(part).to(merged.device, merged.dtype) for part in (delta.a, delta.b))
            if delta.is_transposed:
                merged.addmm_(a.T, b.T, alpha=delta.scaling)
            else:
                merged.addmm_(b, a, alpha=delta.scaling)
        return merged

    def aliases(self) -> dict[str, list[str]]:
        names = {weight.base: name for name, weight in self._weights.items() if not weight.deltas}
        return {
            names[one]: [names[other] for other in others if other in names]
            for one, others in self._tensors.aliases().items()
            if one in names
        }

    def changed(self) -> list[str]:
        return self._tensors.changed()


def merged_lora(module: Any, state: "Mapping[str, torch.Tensor]") -> MergedLora | None:
    """The module's merged weights; None when it has no LoRA layers. Raises SourceError for what cannot be merged."""
    layers = {without_wrappers(f"{path}."): layer for path, layer in module.named_modules() if _is_lora(layer)}
    saved = {without_wrappers(f"{path}."): layer for path, layer in module.named_modules() if _is_saved(layer)}
    if not layers and not saved:
        return None
    names = plain_names(state)
    ddp = next(without_wrappers(name).removesuffix(plain) for name, plain in names.items())
    layers, saved = ({path.removeprefix(ddp): layer for path, layer in each.items()} for each in (layers, saved))
    tensors = TensorSource({names[name]: tensor for name, tensor in state.items()}, is_module=True)
    metas = {meta.name: meta for meta in tensors.metadata()}
    weights = {}
    for name in metas:
        path = next((path for path in _parents(name) if path in layers or path in saved), None)
        if path is None:
            weights[name.removeprefix(ROOT)] = Merged(name)
        elif path in saved:
            if (rest := _saved_name(saved[path], name.removeprefix(path))) is not None:
                weights[(path + rest).removeprefix(ROOT)] = Merged(name)
        elif (rest := name.removeprefix(path)).startswith(BASE):
            deltas = tuple(_deltas(path, layers[path], metas)) if rest == f"{BASE}weight" else ()
            if deltas and metas[name].dtype_name not in CASTABLE:
                raise SourceError(
                    f"weights: {name} is {metas[name].dtype_name}: its adapter cannot be merged; {REMEDY}"
                )
            weights[(path + rest.removeprefix(BASE)).removeprefix(ROOT)] = Merged(name, deltas)
        elif not rest.startswith(tuple(f"{part}." for part in ADAPTER_PARTS)):
            _refuse_active(path, layers[path], name)
    return MergedLora(tensors, weights)


def _is_lora(layer: Any) -> bool:
    return hasattr(layer, "base_layer") and hasattr(layer, "lora_A") and hasattr(layer, "scaling")


def _is_saved(layer: Any) -> bool:
    return hasattr(layer, "original_module") and hasattr(layer, "modules_to_save")


def _parents(name: str) -> Iterator[str]:
    """The paths of the modules that contain a tensor, innermost first, each with a final dot."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield f"{name}."


def _active(layer: Any) -> list[str]:
    """The adapters that the layer applies now: none when they are disabled, or already merged into the base."""
    if layer.disable_adapters or getattr(layer, "merged", False):
        return []
    return list(layer.active_adapters)


def _deltas(path: str, layer: Any, metas: Mapping[str, ParamMeta]) -> Iterator[Delta]:
    for adapter in _active(layer):
        if adapter not in layer.scaling:
            continue
        _refuse_variant(path, layer, adapter)
        is_embedding = f"{path}lora_embedding_A.{adapter}" in metas
        a, b = (
            f"{path}lora_embedding_{end}.{adapter}" if is_embedding else f"{path}lora_{end}.{adapter}.weight"
            for end in ("A", "B")
        )
        if a not in metas or b not in metas or len(metas[a].shape) != 2 or len(metas[b].shape) != 2:
            raise SourceError(f"weights: {path}lora_A, lora_B of {adapter!r} are no matrices; {REMEDY}")
        is_transposed = is_embedding or bool(getattr(layer, "fan_in_fan_out", False))
        yield Delta(a, b, float(layer.scaling[adapter]), is_transposed)


def _refuse_variant(path: str, layer: Any, adapter: str) -> None:
    """Raises SourceError for an adapter that computes more than base + scaling · B · A."""
    for attribute, kind in (("lora_variant", "a LoRA variant (DoRA, aLoRA, …)"), ("use_dora", "DoRA")):
        if getattr(layer, attribute, {}).get(adapter):
            raise SourceError(f"weights: adapter {adapter!r} of {path[:-1]} is {kind}; {REMEDY}")
    if getattr(layer, "lora_bias", {}).get(adapter):
        raise SourceError(f"weights: adapter {adapter!r} of {path[:-1]} has a bias of its own; {REMEDY}")
    if hasattr(layer, "parameter_name"):
        raise SourceError(f"weights: adapter {adapter!r} of {path[:-1]} is on a bare parameter; {REMEDY}")


def _refuse_active(path: str, layer: Any, name: str) -> None:
    if _active(layer):
        raise SourceError(f"weights: {name}: an adapter tensor of a kind that a push cannot merge; {REMEDY}")


def _saved_name(layer: Any, rest: str) -> str | None:
    """The tensor's name in its module; None when the module does not use this tensor now."""
    active = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.modules_to_save]
    prefix = f"modules_to_save.{active[0]}." if active else "original_module."
    return rest.removeprefix(prefix) if rest.startswith(prefix) else None


def _wide(tensor: "torch.Tensor") -> "torch.dtype":
    import torch

    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
