import pytest
import torch
from safetensors.torch import save_file

from sync import CheckError
from sync.check import ServedModel, fit
from sync.sources import ParamMeta, open_source


def served(weights, tied=()):
    return ServedModel("replica", {n: ParamMeta.of(n, t) for n, t in weights.items()}, tied)


def test_all_mismatches_are_listed(weights):
    pushed = dict(weights)
    del pushed["model.layers.0.bias"]
    pushed["extra"] = torch.ones(2)
    pushed["model.layers.0.weight"] = torch.ones(16, 17).bfloat16()
    pushed["model.layers.0.counts"] = torch.ones(7)
    with pytest.raises(CheckError) as caught:
        fit(open_source(pushed), served(weights))
    assert caught.value.mismatches == (
        "model.layers.0.weight: shape is [16, 17], served is [16, 16]",
        "model.layers.0.counts: dtype float32 cannot be cast to int64",
        "extra: not a tensor of the served checkpoint",
        "model.layers.0.bias: missing, served is float32[16]",
    )
    assert all(mismatch in str(caught.value) for mismatch in caught.value.mismatches)


def test_floats_are_cast_to_the_served_dtype(weights):
    pushed = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    fitted = fit(open_source(pushed), served(weights))
    assert {name: tensor.dtype for name, tensor in fitted} == {name: tensor.dtype for name, tensor in weights.items()}
    assert fitted.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    assert [(m.name, m.dtype, m.shape) for m in fitted.metadata()] == [(n, t.dtype, tuple(t.shape)) for n, t in fitted]


def test_float8_is_not_cast(weights):
    pushed = weights | {"model.layers.0.bias": weights["model.layers.0.bias"].to(torch.float8_e4m3fn)}
    with pytest.raises(CheckError, match="float8_e4m3fn cannot be cast to float32"):
        fit(open_source(pushed), served(weights))


def test_a_tied_head_may_be_there_or_not(weights):
    head = "lm_head.weight"
    weights[head] = weights["model.embed_tokens.weight"].clone()  # equal, but not the same memory
    without = {name: tensor for name, tensor in weights.items() if name != head}
    cases = [
        (weights, served(weights, [head])),  # in the served checkpoint and in the push
        (without, served(weights, [head])),  # in the served checkpoint only
        (weights, served(without, [head])),  # in the push only
        (without, served(without, [head])),
    ]
    for pushed, model in cases:
        assert head not in {meta.name for meta in fit(open_source(pushed), model).metadata()}


def test_a_head_that_is_no_longer_tied_is_refused(weights, tmp_path):
    """The replica would answer with the embedding in its place."""
    save_file(weights, tmp_path / "model.safetensors")
    model = served(weights, ["lm_head.weight"])
    for source in (weights, tmp_path):
        with pytest.raises(CheckError, match=r"tied to model\.embed_tokens\.weight in the served model, but differs"):
            fit(open_source(source), model)


def test_a_second_name_of_a_known_tensor_is_left_out(weights):
    pushed = weights | {"model.decoder.embed_tokens.weight": weights["model.embed_tokens.weight"]}
    assert {meta.name for meta in fit(open_source(pushed), served(weights)).metadata()} == set(weights)


def test_a_module_of_one_tensor_under_two_names_fills_both():
    embed = torch.ones(4, 2)
    model = served({"embed": embed, "lm_head": embed})
    assert [name for name, _ in fit(open_source({"embed": embed, "lm_head": embed}), model)] == ["embed", "lm_head"]
