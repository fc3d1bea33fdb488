"""The tensors of a source that a replica loads, as they are sent."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sync.errors import SourceError
from sync.weights.experts import Assembly, Part, has_slot, indexed, parts_of

from .dtypes import CASTABLE
from .names import refuse_peft_names, without_ddp, without_wrappers
from .served_model import ServedModel
from .sources import StreamSource
from .tied_heads import TiedHeads
from .weight_source import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch


class Routes:
    """Maps the source's names to the served model's names."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def spelling(self, name: str) -> str:
        """The served model's spelling of the name, without wrappers; the name itself if it is unknown."""
        known = (name, without_wrappers(name), without_ddp(name))
        return next((each for each in known if each in self._served.parameters or each in self._served.tied), name)

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        """The parts that a tensor fills; empty when the served model has none of them."""
        for spelling in dict.fromkeys((name, without_wrappers(name), without_ddp(name))):
            if parts := parts_of(spelling, shape, self._served.parameters):
                return parts
        return []


class FittedSource(WeightSource):
    """The tensors that a replica loads, each once, cast to the replica's dtypes on the source's device.

    `metadata` is fixed before the first tensor is read. For a stream it is in the served model's order, while the
    tensors come in the stream's order. Iteration raises SourceError when a tensor is not one that the served model
    loads, comes twice, is missing, or is an output head that differs from the embedding that the model ties it to.
    """

    def __init__(self, source: WeightSource, served: ServedModel, metas: Sequence[ParamMeta]) -> None:
        self._source = source
        self._served = served
        self._metas = {meta.name: meta for meta in metas}
        self._routes = Routes(served)

    def metadata(self) -> list[ParamMeta]:
        return list(self._metas.values())

    @property
    def num_bytes(self) -> int:
        return sum(meta.num_bytes for meta in self._metas.values())

    @property
    def missing(self) -> list[str]:
        """Names of tensors that the model loads and this push leaves as they are."""
        return [meta.name for meta in self._served.required if meta.name not in self._metas]

    @property
    def is_partial(self) -> bool:
        return bool(self.missing)

    def require_order(self, backend: str) -> None:
        """Raises SourceError when the tensors may come in another order than `metadata`'s, which `backend` needs."""
        if isinstance(self._source, StreamSource):
            raise SourceError(
                f"weights: backend {backend} needs names and shapes in the order of the tensors, which a stream of "
                "pairs does not have; push a module, a state dict, or a WeightSource with metadata()"
            )

    def changed(self) -> list[str]:
        return self._source.changed()

    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        missing, assembly = dict(self._metas), Assembly()
        heads = TiedHeads.of(self._source, self._served, self._routes.spelling)
        for name, tensor in self._source:
            heads.look(self._routes.spelling(name), tensor)
            for part in self._parts(name, tensor):
                meta = self._metas.get(part.name)
                if meta is None:
                    continue
                piece = _checked(name, part.of(tensor), part, meta)
                if meta.name not in missing:
                    raise SourceError(f"weights: {name}: {meta.name} was yielded twice")
                whole = _assembled(assembly, name, part, meta, piece) if part.slot else piece
                if whole is not None:
                    del missing[meta.name]
                    yield meta.name, whole.to(meta.dtype)
        if missing:
            shown = ", ".join(list(missing)[:10]) + (" …" if len(missing) > 10 else "")
            raise SourceError(f"weights: the source ended without {len(missing)} tensors: {shown}")

    def _parts(self, name: str, tensor: "torch.Tensor") -> list[Part]:
        parts = self._routes.parts(name, tuple(tensor.shape))
        is_known = parts or self._served.is_ignored(self._routes.spelling(name))
        if not is_known and isinstance(self._source, StreamSource):
            refuse_peft_names([name])
            raise SourceError(f"weights: {name}: not a tensor of the served checkpoint")
        return parts


def _checked(name: str, piece: "torch.Tensor", part: Part, meta: ParamMeta) -> "torch.Tensor":
    """Return the piece. Raises SourceError when the model does not load such a tensor there."""
    own = ParamMeta.of(name, piece)
    wanted = indexed(meta.shape, part.slot)
    if not has_slot(meta.shape, part.slot):
        raise SourceError(f"weights: {name}: {meta.name} has {meta.shape[0]} experts")
    if own.shape != wanted:
        raise SourceError(f"weights: {name}: shape is {list(own.shape)}, served is {list(wanted)}")
    if own.dtype_name != meta.dtype_name and not {own.dtype_name, meta.dtype_name} <= CASTABLE:
        raise SourceError(f"weights: {name}: dtype {own.dtype_name} cannot be cast to {meta.dtype_name}")
    return piece


def _assembled(
    assembly: Assembly, name: str, part: Part, meta: ParamMeta, piece: "torch.Tensor"
) -> "torch.Tensor | None":
    try:
        return assembly.add(meta, part.slot, piece)
    except KeyError:
        raise SourceError(f"weights: {name}: its slot in {meta.name} was filled before") from None
