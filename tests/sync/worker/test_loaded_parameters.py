"""The tensors that vLLM's models load from their checkpoints. Asking for them changes nothing. See loaded_models.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sync import CheckError
from sync.weights.check import ServedModel, fit
from sync.weights.open_source import open_source

pytestmark = pytest.mark.stack
TIMEOUT_S = 240
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def answers(folder):
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the test looks at the model itself
    out = folder / "result.json"
    command = [sys.executable, "-m", "tests.sync.loaded_models", str(folder), str(out)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(out.read_text())


def dtypes(answer) -> dict[str, str]:
    return {each["name"]: each["dtype"] for each in answer["parameters"]}


def unloaded(answer) -> list[str]:
    return [each["name"] for each in answer["parameters"] if not each["loaded"]]


@pytest.mark.parametrize(
    "name", ["tied", "tied_with_head", "untied", "qwen3_moe", "glm4_moe", "int8", "online", "dummy"]
)
def test_asking_leaves_every_tensor_and_attribute_as_it_was(answers, name):
    assert answers[name]["is_untouched"]
    assert answers[name]["untraced"] is None


def test_names_and_shapes_are_the_checkpoints(answers, folder):
    for name in ("tied", "untied", "qwen3_moe"):
        metas = sorted(open_source(folder / name).metadata())
        assert [(each["name"], tuple(each["shape"])) for each in answers[name]["parameters"]] == [
            (meta.name, meta.shape) for meta in metas
        ]
        assert unloaded(answers[name]) == []
        assert set(dtypes(answers[name]).values()) == {"bfloat16"}


def test_heads(answers):
    """vLLM ties a checkpoint's head that equals the embedding: both share memory, and a push sends one of them."""
    assert answers["tied"]["tied"] == answers["tied_with_head"]["tied"] == ["lm_head.weight"]
    assert answers["untied"]["tied"] == answers["qwen3_moe"]["tied"] == []
    assert "lm_head.weight" in dtypes(answers["untied"])


def test_float32_parameters_of_a_bfloat16_checkpoint_travel_as_float32(answers, folder):
    answer = answers["glm4_moe"]
    assert dtypes(answer)[BIAS] == "float32"
    assert {name for name, dtype in dtypes(answer).items() if dtype != "bfloat16"} == {
        BIAS,
        "model.layers.1.mlp.gate.weight",  # vLLM routes in float32; the checkpoint has bfloat16
    }
    fitted = dict(fit(open_source(folder / "glm4_moe"), ServedModel.from_answer("replica", answer)))
    assert torch.equal(fitted[BIAS], torch.tensor([7.3012, 7.3019, 7.3031, 7.3044]))


def test_a_head_for_speculation_is_not_loaded_and_not_missed(answers, folder):
    answer = answers["glm4_moe"]
    assert unloaded(answer) == ["model.layers.2.eh_proj.weight"]
    tensors = dict(open_source(folder / "glm4_moe"))
    served = ServedModel.from_answer("replica", answer)
    with_head = fit(open_source(tensors), served).metadata()
    del tensors["model.layers.2.eh_proj.weight"]
    assert fit(open_source(tensors), served).metadata() == with_head


def test_a_quantised_checkpoint_takes_its_like_and_refuses_bfloat16(answers, folder):
    answer = answers["int8"]
    assert answer["quantization"] == "compressed-tensors"
    assert dtypes(answer)[Q_PROJ] == "int8"
    served = ServedModel.from_answer("replica", answer)
    assert not fit(open_source(folder / "int8"), served).is_partial
    with pytest.raises(CheckError, match=r"quantised tensors \(compressed-tensors: .* int8.*--quantization fp8"):
        fit(open_source(folder / "untied"), served)


def test_a_model_that_vllm_quantises_at_load_takes_bfloat16(answers, folder):
    answer = answers["online"]
    assert "torch.float8_e4m3fn" in answer["held"]
    assert set(dtypes(answer).values()) == {"bfloat16"}
    assert not fit(open_source(folder / "untied"), ServedModel.from_answer("replica", answer)).is_partial


def test_without_a_checkpoint_the_configuration_tells_the_names(answers):
    assert answers["dummy"]["load_format"] == "dummy"
    assert answers["dummy"]["parameters"] == answers["qwen3_moe"]["parameters"]


def test_a_loader_that_cannot_be_followed(answers):
    failures = answers["untied"]["failures"]
    assert failures["is_untouched"]
    reasons = failures["reasons"]
    assert reasons["breaks"] == "RuntimeError: the loader broke"
    assert "meta tensors" in reasons["looks"]
    assert "neither a parameter nor a buffer" in reasons["writes"]
    assert reasons["writes_beside"] == [1, 1, 1]
