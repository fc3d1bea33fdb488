"""A transformers model's tensors under the names, and in the pieces, of its checkpoint.

Transformers 5 converts some checkpoints when it loads them: it fuses experts and renames modules. `save_pretrained`
reverts that; this module runs the same conversion on the smallest groups of tensors that depend on each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sync.errors import SourceError

from .sources import IndexedSource
from .weight_source import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch


@dataclass
class ConversionGroup:
    """Tensors of the module that are converted together into tensors of the checkpoint."""

    names: list[str]
    made: list[ParamMeta]


class HubNamesSource(WeightSource):
    """The checkpoint's tensors, converted from the module's while they are read."""

    def __init__(self, tensors: IndexedSource, model: Any, groups: list[ConversionGroup]) -> None:
        self._tensors = tensors
        self._model = model
        self._groups = groups

    @classmethod
    def over(cls, tensors: IndexedSource, model: Any) -> WeightSource:
        """The source in the checkpoint's form; the source itself when it has that form, as before transformers 5."""
        groups = _groups(model, tensors.metadata())
        if all(group.names == [meta.name for meta in group.made] for group in groups):
            return tensors
        return cls(tensors, model, groups)

    def metadata(self) -> list[ParamMeta]:
        return [meta for group in self._groups for meta in group.made]

    def __iter__(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        for group in self._groups:
            made = _revert(self._model, {name: self._tensors.full(name) for name in group.names})
            for name in list(made):
                yield name, made.pop(name)

    def aliases(self) -> dict[str, list[str]]:
        """The aliases of tensors that are only renamed: groups of one tensor that make one tensor."""
        whole = {
            group.names[0]: group.made[0].name for group in self._groups if len(group.names) == len(group.made) == 1
        }
        return {
            whole[one]: [whole[other] for other in others if other in whole]
            for one, others in self._tensors.aliases().items()
            if one in whole
        }

    def changed(self) -> list[str]:
        return self._tensors.changed()


def _revert(model: Any, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    from transformers.core_model_loading import revert_weight_conversion

    try:
        return revert_weight_conversion(model, tensors)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise SourceError(
            f"weights: transformers cannot give {', '.join(tensors)} the checkpoint's form: {error}; push a state dict "
            "with the checkpoint's names"
        ) from error


def _groups(model: Any, metas: list[ParamMeta]) -> list[ConversionGroup]:
    """The smallest groups whose conversion does not depend on other tensors. Uses meta tensors: nothing is computed."""
    try:
        import transformers.core_model_loading  # noqa: F401 - is it there
    except ImportError:
        return [
            ConversionGroup([meta.name], [meta]) for meta in metas
        ]  # before 5 the module has the checkpoint's names
    names: dict[int, list[str]] = {}
    owner: dict[str, int] = {}  # group by the name that it makes
    shapes = {meta.name: meta for meta in metas}
    for number, meta in enumerate(metas):
        made = _revert(model, _on_meta([meta]))
        joined = {owner[name] for name in made if name in owner}
        home = min(joined, default=number)
        names.setdefault(home, [])
        for other in sorted(joined - {home}):
            names[home] += names.pop(other)
        names[home].append(meta.name)
        owner = {name: home if group in joined else group for name, group in owner.items()} if joined else owner
        owner.update(dict.fromkeys(made, home))
    groups = []
    for members in names.values():
        converted = _revert(model, _on_meta([shapes[name] for name in members]))
        groups.append(ConversionGroup(members, [ParamMeta.of(name, tensor) for name, tensor in converted.items()]))
    _check_whole(model, metas, groups)
    return groups


def _check_whole(model: Any, metas: list[ParamMeta], groups: list[ConversionGroup]) -> None:
    """Raises SourceError when the groups give another result than all tensors together."""
    whole = {ParamMeta.of(name, tensor) for name, tensor in _revert(model, _on_meta(metas)).items()}
    parts = {meta for group in groups for meta in group.made}
    if unlike := sorted(meta.name for meta in whole ^ parts):
        raise SourceError(
            f"weights: transformers converts {unlike[0]} only together with the rest of the model; push a state dict "
            "with the checkpoint's names"
        )


def _on_meta(metas: list[ParamMeta]) -> "dict[str, torch.Tensor]":
    import torch

    return {meta.name: torch.empty(meta.shape, dtype=meta.dtype, device="meta") for meta in metas}
