"""Names and shapes of a mixture's experts: one tensor for each expert, or one for all of them.

    per expert   L.mlp.experts.3.gate_proj.weight [I, H]      L.block_sparse_moe.experts.3.w1.weight
                 L.mlp.experts.3.up_proj.weight   [I, H]      L.block_sparse_moe.experts.3.w3.weight
                 L.mlp.experts.3.down_proj.weight [H, I]      L.block_sparse_moe.experts.3.w2.weight
    fused        L.mlp.experts.gate_up_proj [E, 2·I, H]       gate before up, as transformers 5 holds them
                 L.mlp.experts.down_proj    [E, H, I]

Checkpoints of Qwen, DeepSeek, GLM and Mixtral models have the first form, their modules in transformers 5 the second.
Fused tensors of another orientation ([E, H, 2·I]: Llama 4, GPT-OSS) are the same in module and checkpoint, so they are
not split. A shape does not distinguish the two orientations when 2·I is H, so the names decide, as in transformers 5.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .weight_source import ParamMeta

if TYPE_CHECKING:
    import torch

Index = tuple[int | tuple[int, int], ...]
"""Positions in the leading dimensions: an index, or a range (start, end)."""
# Names of gate, up and down projection in a checkpoint with one tensor for each expert.
LEAVES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
# Transformers 5 names Mixtral's block like all others; Mixtral's checkpoints do not.
BLOCKS = ((".mlp.", ".block_sparse_moe."), (".block_sparse_moe.", ".mlp."))
FUSED = re.compile(r"(?P<head>.+\.experts)\.(?P<leaf>gate_up_proj|down_proj)(?:\.weight)?")
SINGLE = re.compile(r"(?P<head>.+\.experts)\.(?P<expert>\d+)\.(?P<leaf>\w+)\.weight")


@dataclass(frozen=True)
class Part:
    """How a tensor of the source fills a served one: `tensor[source_slot]` is `served[slot]`; `()` is all of it."""

    name: str
    source_slot: Index = ()
    slot: Index = ()

    def of(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The part's view of the source's tensor."""
        return tensor[slices(self.source_slot)] if self.source_slot else tensor

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of `of`, from the tensor's."""
        return indexed(shape, self.source_slot)


def parts_of(name: str, shape: tuple[int, ...], served: Mapping[str, ParamMeta]) -> list[Part]:
    """The parts that a tensor of the source fills; empty when the served model has its name in neither form."""
    for candidate in _spellings(name):
        if candidate in served:
            return [Part(candidate)]
        if match := FUSED.fullmatch(candidate):
            parts = _fused_parts(match["head"], match["leaf"], shape, served)
        elif match := SINGLE.fullmatch(candidate):
            parts = _expert_parts(match["head"], int(match["expert"]), match["leaf"], served)
        else:
            continue
        if parts:
            return parts
    return []


def slots_of(meta: ParamMeta) -> set[Index]:
    """All slots of a fused tensor, which its experts fill."""
    match = FUSED.fullmatch(meta.name)
    experts, rows = meta.shape[:2]
    if match is None or match["leaf"] == "down_proj":
        return {(expert,) for expert in range(experts)}
    half = rows // 2
    return {(expert, span) for expert in range(experts) for span in ((0, half), (half, rows))}


def indexed(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    """Shape of `tensor[index]`, from the tensor's shape."""
    return (*(end - start for start, end in (key for key in index if isinstance(key, tuple))), *shape[len(index) :])


def has_slot(shape: tuple[int, ...], slot: Index) -> bool:
    """Whether a fused tensor has the slot's expert."""
    return not slot or (isinstance(slot[0], int) and slot[0] < shape[0])


def slices(index: Index) -> tuple[int | slice, ...]:
    """The index in torch's form."""
    return tuple(slice(*key) if isinstance(key, tuple) else key for key in index)


def _spellings(name: str) -> list[str]:
    return [name, *(name.replace(old, new) for old, new in BLOCKS if old in name)]


def _fused_parts(head: str, leaf_name: str, shape: tuple[int, ...], served: Mapping[str, ParamMeta]) -> list[Part]:
    """A fused tensor, split into the served model's experts."""
    if len(shape) != 3:
        return []
    experts, rows, _ = shape
    half = rows // 2
    for gate, up, down in LEAVES:
        if f"{head}.0.{down}.weight" not in served:
            continue
        if leaf_name == "down_proj":
            return [Part(f"{head}.{expert}.{down}.weight", (expert,)) for expert in range(experts)]
        return [
            Part(f"{head}.{expert}.{name}.weight", (expert, span))
            for expert in range(experts)
            for name, span in ((gate, (0, half)), (up, (half, rows)))
        ]
    return []


def _expert_parts(head: str, expert: int, leaf_name: str, served: Mapping[str, ParamMeta]) -> list[Part]:
    """One expert's tensor, and its slot in the served model's fused tensor."""
    role = next((leaves.index(leaf_name) for leaves in LEAVES if leaf_name in leaves), None)
    if role is None:
        return []
    fused = f"{head}.{'down_proj' if role == 2 else 'gate_up_proj'}"
    name = next((spelling for spelling in (fused, f"{fused}.weight") if spelling in served), None)
    if name is None or len(served[name].shape) != 3:
        return []
    half, rows = served[name].shape[1] // 2, served[name].shape[1]
    slots: tuple[Index, ...] = ((expert, (0, half)), (expert, (half, rows)), (expert,))
    return [Part(name, (), slots[role])]


class Assembly:
    """Fused tensors that are being filled, expert by expert. One layer at a time when the source is in that order."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[torch.Tensor, set[Index]]] = {}

    def add(self, meta: ParamMeta, slot: Index, piece: "torch.Tensor") -> "torch.Tensor | None":
        """Copy a piece into its slot. Returns the complete tensor after the last. Raises KeyError for a filled slot."""
        import torch

        if meta.name not in self._open:
            self._open[meta.name] = torch.empty(meta.shape, dtype=meta.dtype, device=piece.device), slots_of(meta)
        whole, left = self._open[meta.name]
        left.remove(slot)
        whole[slices(slot)].copy_(piece)
        if left:
            return None
        del self._open[meta.name]
        return whole
