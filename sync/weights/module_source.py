"""A trainer's `nn.Module` as a source, with its checkpoint's names."""

import sys
from typing import TYPE_CHECKING, Any

from sync.errors import SourceError

from .hub_names import HubNamesSource
from .lora_merge import merged_lora
from .names import canonical_names
from .sources import TensorSource
from .weight_source import WeightSource

if TYPE_CHECKING:
    import torch
# The attributes in which torch.compile, FSDP1, activation checkpointing and DDP hold the wrapped module.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")


def open_module(module: "torch.nn.Module") -> WeightSource:
    """The module's state dict as transformers would save it: without wrappers' names, with LoRA adapters merged.

    Raises SourceError for modules without whole tensors (ZeRO-3), and for adapters that cannot be merged.
    """
    if any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        raise SourceError(
            "weights: the module's parameters are partitioned by DeepSpeed ZeRO-3; push a WeightSource that gathers "
            "them (sync/weights/weight_source.py has one)"
        )
    root = unwrapped(module)
    state = {name: value for name, value in module.state_dict().items() if not name.endswith("_extra_state")}
    lora = merged_lora(module, state)
    if lora is not None:
        return _with_hub_names(lora, root)
    names = canonical_names(state)
    return _with_hub_names(TensorSource({names[name]: value for name, value in state.items()}, is_module=True), root)


def unwrapped(module: Any) -> Any:
    """The module inside torch.compile, DDP, FSDP1, activation checkpointing and PEFT."""
    while True:
        children = dict(module.named_children())
        if hasattr(module, "peft_config") and "base_model" in children:
            tuner = module.base_model
            module = tuner.model if hasattr(tuner, "model") and hasattr(tuner, "peft_config") else tuner
            continue
        wrapped = [children[name] for name in _WRAPPED if name in children]
        if len(children) != 1 or not wrapped:
            return module
        module = wrapped[0]


def _with_hub_names(source: Any, root: Any) -> WeightSource:
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(root, transformers.PreTrainedModel):
        return source
    return HubNamesSource.over(source, root)
