"""The tensors that a replica loads, as its `parameters` operation lists them."""

from collections.abc import Collection, Mapping
from typing import Any

from sync.errors import InvalidError

from .dtypes import CASTABLE
from .weight_source import ParamMeta

# In old checkpoints; every engine computes it.
COMPUTED_SUFFIX = "rotary_emb.inv_freq"
# Name suffixes of tensors that only quantised checkpoints have.
QUANTIZED_SUFFIXES = (".qweight", ".weight_packed", ".qzeros", ".weight_scale", ".weight_scale_inv")


class ServedModel:
    """The tensors of a replica's checkpoint, each in the dtype in which it travels.

    tied: names that the model ties to the input embedding. unloaded: names of the checkpoint that the model does not
    load (another model's heads, the vision part of a text-only run).
    """

    def __init__(
        self,
        target: str,
        parameters: Mapping[str, ParamMeta],
        tied: Collection[str] = (),
        unloaded: Collection[str] = (),
        quantization: str | None = None,
    ) -> None:
        self.target = target
        self.parameters = dict(parameters)
        self.tied = frozenset(tied)
        self.unloaded = frozenset(unloaded)
        self.quantization = quantization

    @classmethod
    def from_answer(cls, target: str, answer: Mapping[str, Any]) -> "ServedModel":
        """From the replica's answer. Raises InvalidError when the replica does not know its tensors' names."""
        listed = answer["parameters"]
        if listed is None:
            raise InvalidError(target, "parameters", f"the model's names are not known there: {answer.get('reason')}")
        metas = [ParamMeta.from_names(each["name"], each["dtype"], each["shape"]) for each in listed]
        unloaded = [each["name"] for each in listed if not each.get("loaded", True)]
        parameters = {meta.name: meta for meta in metas}
        return cls(target, parameters, answer.get("tied", ()), unloaded, answer.get("quantization"))

    def is_ignored(self, name: str) -> bool:
        """Whether a source may contain this name although it is not sent."""
        return name in self.tied or name in self.unloaded or name.endswith(COMPUTED_SUFFIX)

    @property
    def required(self) -> list[ParamMeta]:
        """The tensors of a full push, in the checkpoint's order."""
        return [meta for name, meta in self.parameters.items() if not self.is_ignored(name)]

    def loads_as(self, other: "ServedModel") -> bool:
        """Whether both models load the same tensors."""
        mine, theirs = (set(model.required) for model in (self, other))
        return mine == theirs and self.tied == other.tied

    def stored_quantized(self) -> ParamMeta | None:
        """A tensor that only a quantised checkpoint has; None when the checkpoint is unquantised.

        Other tensors with such dtypes (counters, routing tables) are no matrices.
        """
        for meta in self.required:
            is_matrix = len(meta.shape) > 1 and meta.name.endswith("weight") and meta.dtype_name not in CASTABLE
            if is_matrix or meta.name.endswith(QUANTIZED_SUFFIXES):
                return meta
        return None


def quantization_advice(served: ServedModel) -> str:
    """Advice for a push of unquantised tensors to a quantised checkpoint; empty when the checkpoint is unquantised."""
    stored = served.stored_quantized()
    if stored is None:
        return ""
    return (
        f"the served checkpoint stores quantised tensors ({served.quantization or 'quantised'}: {stored.name} is "
        f"{stored}): push the quantised tensors of a checkpoint of the same kind, or serve the bfloat16 checkpoint "
        "with --quantization fp8_per_tensor, which vLLM quantises at load"
    )
