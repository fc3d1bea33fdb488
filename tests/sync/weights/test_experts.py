"""Fused experts and single ones, each against checkpoints of the other kind."""

from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from sync import CheckError, SourceError
from sync.weights.check import ServedModel, fit
from sync.weights.hub_names import HubNamesSource
from sync.weights.open_source import open_source
from sync.weights.sources import StreamSource
from sync.weights.weight_source import ParamMeta

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}


def qwen3_moe() -> torch.nn.Module:
    more = {"moe_intermediate_size": 8, "head_dim": 16, "num_experts": 3, "num_experts_per_tok": 1}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **more))


def mixtral() -> torch.nn.Module:
    return MixtralForCausalLM(MixtralConfig(num_local_experts=3, **SIZES))


@pytest.fixture(params=[qwen3_moe, mixtral])
def model(request, tmp_path):
    """A model, the checkpoint that transformers saves of it, and the tensors that a server of it loads."""
    torch.manual_seed(0)
    model = request.param()
    model.save_pretrained(tmp_path)
    saved = dict(open_source(tmp_path))
    assert any(".experts.2." in name for name in saved)
    return model, saved, served_of(saved)


def served_of(tensors) -> ServedModel:
    return ServedModel("replica", {name: ParamMeta.of(name, tensor) for name, tensor in tensors.items()})


def assert_equal(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_module_is_pushed_as_transformers_saves_it(model):
    module, saved, served = model
    source = open_source(module)
    assert isinstance(source, HubNamesSource)
    fitted = fit(source, served)
    assert_equal(dict(fitted), saved)
    assert [(meta.name, meta.shape) for meta in fitted.metadata()] == [(n, tuple(t.shape)) for n, t in fitted]


def test_a_module_under_wrappers(model):
    module, saved, served = model
    assert_equal(dict(fit(open_source(torch.compile(module)), served)), saved)


@pytest.mark.parametrize("form", [dict, lambda state: (pair for pair in state.items())], ids=["mapping", "stream"])
def test_fused_tensors_are_cut_for_a_checkpoint_of_single_experts(model, form):
    module, saved, served = model
    assert_equal(dict(fit(open_source(form(module.state_dict())), served)), saved)


@pytest.mark.parametrize("form", [dict, lambda state: (pair for pair in state.items())], ids=["mapping", "stream"])
def test_single_experts_fill_a_checkpoint_of_fused_tensors(model, form):
    module, saved, _ = model
    fused = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    assert_equal(dict(fit(open_source(form(saved)), served_of(fused))), fused)


def test_cuts_are_views(model):
    module, _, served = model
    state = module.state_dict()
    fused = {tensor.untyped_storage().data_ptr() for name, tensor in state.items() if ".experts." in name}
    cut = [tensor for name, tensor in fit(open_source(state), served) if ".experts." in name]
    assert {tensor.untyped_storage().data_ptr() for tensor in cut} == fused


def test_an_expert_is_missing(model):
    module, saved, _ = model
    fused = served_of({name: tensor.detach() for name, tensor in module.state_dict().items()})
    partly = {name: tensor for name, tensor in saved.items() if ".experts.1." not in name}
    with pytest.raises(CheckError, match=r"layers\.0\.mlp\.experts\.gate_up_proj: experts 1 are missing"):
        fit(open_source(partly), fused)
    with pytest.raises(SourceError, match="ended without 4 tensors"):
        list(fit(StreamSource(partly.items()), fused))


def test_more_experts_than_are_served(model):
    module, saved, served = model
    state = {
        name: torch.cat([tensor, tensor]) if ".experts." in name else tensor
        for name, tensor in module.state_dict().items()
    }
    with pytest.raises(CheckError, match=r"experts\.5\..* is not a tensor of the served checkpoint"):
        fit(open_source(state), served)
    fused = served_of({name: tensor.detach() for name, tensor in module.state_dict().items()})
    more = saved | {name.replace(".1.", ".7."): tensor for name, tensor in saved.items() if ".experts.1." in name}
    with pytest.raises(CheckError, match=r"experts\.7\..*: shape is"):
        fit(open_source(more), fused)
    with pytest.raises(SourceError, match="has 3 experts"):
        list(fit(StreamSource(more.items()), fused))


def test_an_expert_comes_twice(model):
    module, saved, _ = model
    fused = served_of({name: tensor.detach() for name, tensor in module.state_dict().items()})
    with pytest.raises(SourceError, match=r"was filled before|yielded twice"):
        list(fit(StreamSource([*saved.items(), *saved.items()]), fused))


def test_experts_of_another_shape(model):
    module, _, served = model
    state = {
        name: tensor.transpose(1, 2) if name.endswith("gate_up_proj") else tensor
        for name, tensor in module.state_dict().items()
    }
    with pytest.raises(CheckError, match=r"gate_up_proj for .*: shape is"):
        fit(open_source(state), served)
