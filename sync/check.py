"""Comparing weights with what a replica serves, before a byte moves."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .errors import CheckError
from .sources import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch

# Written into old checkpoints, computed by every engine.
COMPUTED_SUFFIX = "rotary_emb.inv_freq"
CASTABLE = frozenset({"float64", "float32", "float16", "bfloat16"})


class ServedModel:
    """The tensors a replica's checkpoint has, as its `parameters` operation lists them."""

    def __init__(self, target: str, parameters: Mapping[str, ParamMeta], tied: Collection[str] = ()) -> None:
        self.target = target
        self.parameters = dict(parameters)
        self.tied = frozenset(tied)

    @classmethod
    def from_answer(cls, target: str, answer: Mapping[str, Any]) -> "ServedModel":
        metas = [ParamMeta.from_names(p["name"], p["dtype"], p["shape"]) for p in answer["parameters"]]
        return cls(target, {meta.name: meta for meta in metas}, answer.get("tied", ()))


class FittedSource(WeightSource):
    """The part of a source that a replica takes, cast to the replica's dtypes on the source's device."""

    def __init__(self, source: WeightSource, metas: list[ParamMeta]) -> None:
        self._source = source
        self._metas = {meta.name: meta for meta in metas}

    def metadata(self) -> list[ParamMeta]:
        return list(self._metas.values())

    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        for name, tensor in self._source:
            if meta := self._metas.get(name):
                yield name, tensor.to(meta.dtype)

    @property
    def num_bytes(self) -> int:
        return sum(meta.num_bytes for meta in self._metas.values())


def fit(source: WeightSource, served: ServedModel) -> FittedSource:
    """What of the source to send to the replica, in the source's order. Raises CheckError with every mismatch.

    - Every tensor of the replica's checkpoint must be there, in its shape; tied ones (`lm_head.weight`) may be missing.
    - A floating-point dtype other than the replica's is cast on the trainer's side, any other difference is refused.
    - A tied tensor that is there must equal the embedding: the replica would answer with the embedding in its place.
    - A name the replica does not know is refused, unless its tensor is also there under a name it knows.
    """
    metas: list[ParamMeta] = []
    mismatches: list[str] = []
    aliases = source.aliases()
    untied = untied_heads(source, served.tied)
    seen: set[str] = set()
    for meta in source.metadata():
        seen.add(meta.name)
        wanted = served.parameters.get(meta.name)
        if meta.name in served.tied or meta.name.endswith(COMPUTED_SUFFIX):
            continue  # the replica makes it from another one
        if wanted is None:
            if not any(alias in served.parameters for alias in aliases.get(meta.name, ())):
                mismatches.append(f"{meta.name}: not a tensor of the served checkpoint")
        elif wanted.shape != meta.shape:
            mismatches.append(f"{meta.name}: shape is {list(meta.shape)}, served is {list(wanted.shape)}")
        elif wanted.dtype_name != meta.dtype_name and not {wanted.dtype_name, meta.dtype_name} <= CASTABLE:
            mismatches.append(f"{meta.name}: dtype {meta.dtype_name} cannot be cast to {wanted.dtype_name}")
        else:
            metas.append(wanted)
    mismatches += [
        f"{name}: missing, served is {meta}"
        for name, meta in served.parameters.items()
        if name not in seen and name not in served.tied and not name.endswith(COMPUTED_SUFFIX)
    ]
    mismatches += [f"{name}: tied to {other} in the served model, but differs from it here" for name, other in untied]
    if mismatches:
        raise CheckError(served.target, mismatches)
    return FittedSource(source, metas)


def untied_heads(source: WeightSource, tied: frozenset[str]) -> list[tuple[str, str]]:
    """Output heads that the replica ties to the input embedding, and that are another tensor here; with its name."""
    metas = {meta.name: meta for meta in source.metadata()}
    aliases = source.aliases()
    found = []
    for head in tied & metas.keys():
        alike = [name for name, meta in metas.items() if "embed" in name and meta.shape == metas[head].shape]
        if len(alike) != 1 or alike[0] in aliases.get(head, ()):
            continue
        tensors = source.select({head, alike[0]})
        own, embedding = tensors[head], tensors[alike[0]]
        if not own.is_meta and not own.equal(embedding.to(own.dtype)):
            found.append((head, alike[0]))
    return found
