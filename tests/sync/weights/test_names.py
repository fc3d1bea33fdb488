"""Names that wrappers leave in a trainer's state dict."""

from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from sync import SourceError
from sync.weights.names import canonical_names, without_ddp
from sync.weights.open_source import open_source


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)])


class Ddp(torch.nn.Module):
    """Wraps a module like DistributedDataParallel."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


class Fsdp1(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module


def compiled(module: torch.nn.Module) -> Any:
    return torch.compile(module)


PLAIN = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


def inner_wrapped(wrap) -> Model:
    model = Model()
    model.layers[0] = wrap(model.layers[0])
    return model


@pytest.mark.parametrize(
    "module",
    [
        torch.compile(Model()),
        Ddp(Model()),
        Ddp(compiled(Model())),
        torch.compile(Ddp(Model())),
        inner_wrapped(torch.compile),
        inner_wrapped(checkpoint_wrapper),
        Fsdp1(inner_wrapped(Fsdp1)),
    ],
    ids=["compile", "ddp", "ddp-compile", "compile-ddp", "compiled layer", "activation checkpointing", "fsdp1"],
)
def test_wrappers_leave_no_trace(module):
    for weights in (module, module.state_dict()):
        source = open_source(weights)
        assert [meta.name for meta in source.metadata()] == PLAIN
        pairs = zip(source, module.state_dict().values(), strict=True)
        assert all(torch.equal(tensor, value) for (_, tensor), value in pairs)


def test_module_goes_only_where_it_wraps_everything():
    names = ["module.a", "b.module.c", "d"]
    assert canonical_names(names) == {name: name for name in names}
    assert canonical_names(["module.a", "module.b.module.c"]) == {"module.a": "a", "module.b.module.c": "b.module.c"}
    assert without_ddp("module._orig_mod.a._orig_mod.b") == "_orig_mod.a.b".removeprefix("_orig_mod.")


def test_two_names_that_become_one():
    with pytest.raises(SourceError, match=r"a\._orig_mod\.w and a\.w|a\.w and a\._orig_mod\.w are both a\.w"):
        open_source({"a.w": torch.ones(1), "a._orig_mod.w": torch.ones(1)})


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.layers.0.base_layer.weight",
        "base_model.model.layers.0.lora_A.default.weight",
        "layers.0.lora_magnitude_vector.default.weight",
        "base_model.model.lm_head.modules_to_save.default.weight",
    ],
)
def test_an_unmerged_state_dict_is_refused_with_what_helps(name):
    with pytest.raises(SourceError, match=r"un-merged PEFT adapter.*push the PEFT model itself.*push_adapter"):
        open_source({name: torch.ones(1)})
