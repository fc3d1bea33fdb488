"""The answer to `parameters`, from what the ranks' models load."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen3MoeConfig

from sync.weights.weight_source import ParamMeta
from sync.worker.loaded_parameters import LoadedParameter
from sync.worker.served_parameters import configured_metas, describe_parameters, merge_answers

METAS = [
    ParamMeta("model.embed_tokens.weight", "bfloat16", (8, 4)),
    ParamMeta("model.gate.bias", "float32", (4,)),
    ParamMeta("model.norm.weight", "float32", (4,)),
    ParamMeta("model.proj.weight", "float8_e4m3fn", (4, 4)),
    ParamMeta("mtp.weight", "bfloat16", (4, 4)),
]
REPORT = {
    "model.embed_tokens.weight": LoadedParameter("bfloat16", ("model.embed_tokens.weight",)),
    "model.gate.bias": LoadedParameter("float32", ("model.gate.bias",)),
    "model.norm.weight": LoadedParameter("bfloat16", ("model.norm.weight",)),
    "model.proj.weight": LoadedParameter("bfloat16", ("model.proj.weight",)),
}
HEAD = ParamMeta("lm_head.weight", "bfloat16", (8, 4))


def test_a_tensor_travels_in_the_loaded_dtype_where_a_cast_is_allowed():
    answer = describe_parameters(METAS, REPORT, is_tied=False)
    assert [(each["name"], each["dtype"], each["loaded"]) for each in answer["parameters"]] == [
        ("model.embed_tokens.weight", "bfloat16", True),
        ("model.gate.bias", "float32", True),
        ("model.norm.weight", "bfloat16", True),
        ("model.proj.weight", "float8_e4m3fn", True),
        ("mtp.weight", "bfloat16", False),
    ]
    assert answer["tied"] == []


def test_without_a_report_everything_counts_in_its_own_dtype():
    answer = describe_parameters(METAS, None, is_tied=True)
    assert [(each["dtype"], each["loaded"]) for each in answer["parameters"]] == [
        ("bfloat16", True),
        ("float32", True),
        ("float32", True),
        ("float8_e4m3fn", True),
        ("bfloat16", True),
    ]
    assert answer["tied"] == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("is_tied", "reaches", "tied"),
    [
        (True, None, ["lm_head.weight"]),
        (False, None, []),
        (False, "model.embed_tokens.weight", ["lm_head.weight"]),  # one memory: vLLM tied them after loading
        (True, "lm_head.weight", []),  # the model has a separate head, even if the configuration ties it
    ],
)
def test_a_head_is_tied_when_the_model_makes_it_from_the_embedding(is_tied, reaches, tied):
    head = {} if reaches is None else {"lm_head.weight": LoadedParameter("bfloat16", (reaches,))}
    assert describe_parameters([*METAS, HEAD], REPORT | head, is_tied=is_tied)["tied"] == tied


def test_a_tensor_is_loaded_when_one_rank_loads_it():
    first = {name: each for name, each in REPORT.items() if "norm" not in name}
    last = {"model.norm.weight": LoadedParameter("float32", ("model.norm.weight",))}
    merged = merge_answers([describe_parameters(METAS, report, is_tied=True) for report in (first, last)])
    assert {each["name"]: (each["dtype"], each["loaded"]) for each in merged["parameters"]} == {
        "model.embed_tokens.weight": ("bfloat16", True),
        "model.gate.bias": ("float32", True),
        "model.norm.weight": ("float32", True),
        "model.proj.weight": ("float8_e4m3fn", True),
        "mtp.weight": ("bfloat16", False),
    }
    assert merged["tied"] == ["lm_head.weight"]


def test_a_head_that_one_rank_loads_by_itself_is_not_tied():
    own = {"lm_head.weight": LoadedParameter("bfloat16", ("lm_head.weight",))}
    answers = [describe_parameters([*METAS, HEAD], report, is_tied=True) for report in (REPORT, own)]
    assert merge_answers(answers)["tied"] == []


def test_a_rank_that_could_not_look_makes_all_of_them_count():
    seen = describe_parameters(METAS, REPORT, is_tied=False) | {"untraced": None}
    blind = describe_parameters(METAS, None, is_tied=False) | {"untraced": "ValueError: it looks at values"}
    assert merge_answers([seen, blind]) == blind
    unknown = {"parameters": None, "tied": [], "reason": "no safetensors"}
    assert merge_answers([seen, unknown]) == unknown


SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 32,
}


def test_a_configuration_tells_the_names_that_its_checkpoint_would_have():
    moe = Qwen3MoeConfig(moe_intermediate_size=8, num_experts=2, num_experts_per_tok=1, **SIZES)
    metas = {meta.name: meta for meta in configured_metas(moe, torch.bfloat16)}
    assert metas["model.layers.0.mlp.experts.1.up_proj.weight"][1:] == ("bfloat16", (8, 16))
    tied = configured_metas(LlamaConfig(tie_word_embeddings=True, **SIZES), torch.float32)
    assert "lm_head.weight" not in {meta.name for meta in tied}
    assert {meta.dtype_name for meta in tied} == {"float32"}
