"""Comparing weights with the tensors that a replica loads, by their metadata, before a byte is sent."""

from collections.abc import Mapping

from sync.errors import CheckError, SourceError
from sync.weights.experts import Index, Part, has_slot, indexed, slots_of

from .dtypes import CASTABLE
from .fitted import FittedSource, Routes
from .served_model import ServedModel, quantization_advice
from .sources import StreamSource
from .weight_source import ParamMeta, WeightSource

__all__ = ["FittedSource", "ServedModel", "fit"]


def fit(source: WeightSource, served: ServedModel, *, partial: bool = False) -> FittedSource:
    """The source's tensors that the replica loads, in the source's order. Raises CheckError with every mismatch.

    - Every tensor that the replica loads must be present, with its shape; tied tensors (`lm_head.weight`) may be
      missing. With `partial` at least one of them must be present.
    - A floating-point dtype other than the replica's is cast by the trainer; any other difference is refused.
    - A tied tensor, if present, must equal the embedding; FittedSource compares them when both are read.
    - A name that the replica does not know is refused, unless its tensor is also present under a known name.
    - Two names with the same memory are refused, unless the source declares them as tied.

    A stream has no metadata: each of its tensors is checked when it is read. Raises SourceError for a partial stream,
    because the names of a partial push must be known in advance.
    """
    if isinstance(source, StreamSource):
        if partial:
            raise SourceError("partial: a stream's names are not known before it is read; push a mapping of them")
        return FittedSource(source, served, served.required)
    comparison = _Comparison(source, served)
    mismatches = comparison.mismatches
    if not partial:
        mismatches += comparison.missing()
    elif not comparison.metas and not mismatches:
        mismatches.append("partial: none of the tensors is one that the served model loads")
    if mismatches:
        if advice := quantization_advice(served):
            mismatches.insert(0, advice)
        raise CheckError(served.target, mismatches)
    return FittedSource(source, served, list(comparison.metas.values()))


class _Comparison:
    """Compares the source's metadata with the served model's. `metas`: the tensors to send, in the source's order."""

    def __init__(self, source: WeightSource, served: ServedModel) -> None:
        self._source = source
        self._served = served
        self._routes = Routes(served)
        self._filled: dict[str, set[Index]] = {}  # slots of fused tensors
        self.metas: dict[str, ParamMeta] = {}
        self.mismatches: list[str] = []
        self._seen: set[str] = set()
        self._sent: set[str] = set()  # the source's names
        aliases = source.aliases()
        for meta in source.metadata():
            self._compare(meta, aliases)
        self.mismatches += self._shared_memory()
        self.mismatches += self._half_filled()

    def missing(self) -> list[str]:
        """The tensors that the model loads and the source lacks."""
        return [
            f"{meta.name}: missing, served is {meta}" for meta in self._served.required if meta.name not in self._seen
        ]

    def _compare(self, meta: ParamMeta, aliases: Mapping[str, list[str]]) -> None:
        if self._served.is_ignored(self._routes.spelling(meta.name)):
            return
        parts = self._routes.parts(meta.name, meta.shape)
        if not parts and not any(alias in self._served.parameters for alias in aliases.get(meta.name, ())):
            self.mismatches.append(f"{meta.name}: not a tensor of the served checkpoint")
        for part in parts:
            wanted = self._served.parameters.get(part.name)
            if wanted is None:
                self.mismatches.append(f"{meta.name}: {part.name} is not a tensor of the served checkpoint")
            elif not self._served.is_ignored(part.name):
                self._seen.add(part.name)
                if problem := mismatch(meta, part, wanted):
                    self.mismatches.append(problem)
                elif part.name in self.metas and not part.slot:
                    self.mismatches.append(f"{meta.name}: {part.name} is there twice")
                else:
                    self.metas[part.name] = wanted
                    self._filled.setdefault(part.name, set()).add(part.slot)
                    self._sent.add(meta.name)

    def _half_filled(self) -> list[str]:
        """Fused tensors of which some experts are missing."""
        found = []
        for name, slots in self._filled.items():
            if slots != {()} and (left := slots_of(self._served.parameters[name]) - slots):
                experts = sorted({slot[0] for slot in left if isinstance(slot[0], int)})
                found.append(f"{name}: experts {', '.join(map(str, experts))} are missing")
        return found

    def _shared_memory(self) -> list[str]:
        """Names whose tensors share memory: a reused buffer holds only its last tensor."""
        return [
            f"{one}, {other}: share their memory, so both would be sent with the same bytes; clone them, or push the "
            "module or a generator instead"
            for one, other in self._source.overlaps(self._sent)
        ]


def mismatch(meta: ParamMeta, part: Part, wanted: ParamMeta) -> str | None:
    """Why a tensor's part cannot be sent as the served model's `wanted`; None when it can."""
    shape, served_shape = part.shape_of(meta.shape), indexed(wanted.shape, part.slot)
    if shape != served_shape or not has_slot(wanted.shape, part.slot):
        names = f"{meta.name} for {wanted.name}" if meta.name != wanted.name else meta.name
        return f"{names}: shape is {list(meta.shape)}, served is {list(wanted.shape)}"
    if wanted.dtype_name != meta.dtype_name and not {wanted.dtype_name, meta.dtype_name} <= CASTABLE:
        return f"{meta.name}: dtype {meta.dtype_name} cannot be cast to {wanted.dtype_name}"
    return None
