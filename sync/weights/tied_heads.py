"""Output heads that the served model ties to its input embedding: a source's head must equal its embedding."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sync.errors import SourceError

from .served_model import ServedModel
from .sources import StreamSource
from .weight_source import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch

Spelling = Callable[[str], str]


class TiedHeads:
    """The replica computes with the embedding instead of the head, so a head that differs would be lost."""

    def __init__(self, pairs: dict[str, ParamMeta]) -> None:
        """pairs: the embedding of each head, in its served dtype."""
        self._pairs = pairs
        self._wanted = pairs.keys() | {embedding.name for embedding in pairs.values()}
        self._digests: dict[tuple[str, str], int] = {}  # by the tensor's name and the embedding's name

    @classmethod
    def of(cls, source: WeightSource, served: ServedModel, spelling: Spelling) -> "TiedHeads":
        """The heads that a source may yield and does not itself tie to the embedding."""
        embeddings = [meta for meta in served.required if "embed" in meta.name and len(meta.shape) == 2]
        pairs: dict[str, ParamMeta] = {}
        if isinstance(source, StreamSource):
            if len(embeddings) == 1:
                pairs = dict.fromkeys(served.tied, embeddings[0])
            return cls(pairs)
        aliases = source.aliases()
        for meta in source.metadata():
            head = spelling(meta.name)
            alike = [embedding for embedding in embeddings if embedding.shape == meta.shape]
            if head in served.tied and len(alike) == 1 and alike[0].name not in _spelled(aliases, meta.name, spelling):
                pairs[head] = alike[0]
        return cls(pairs)

    def look(self, name: str, tensor: "torch.Tensor") -> None:
        """Keep the digest of a head or an embedding. Raises SourceError when both are known and differ."""
        if name not in self._wanted or tensor.is_meta:
            return
        from .digest import tensor_digest

        for head, embedding in self._pairs.items():
            if name not in (head, embedding.name):
                continue
            own, other = (name, embedding.name), (embedding.name if name == head else head, embedding.name)
            self._digests[own] = tensor_digest(tensor.to(embedding.dtype))
            if other in self._digests and self._digests[other] != self._digests[own]:
                raise SourceError(
                    f"weights: {head}: tied to {embedding.name} in the served model, but differs from it here; serve a "
                    "checkpoint with tie_word_embeddings=false"
                )


def _spelled(aliases: Mapping[str, list[str]], name: str, spelling: Spelling) -> list[str]:
    return [spelling(alias) for alias in aliases.get(name, ())]
