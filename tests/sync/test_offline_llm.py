"""The worker's engine inside vLLM's offline LLM: loads and refusals. See offline.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 240


@pytest.fixture(scope="module")
def result(tiny_model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("offline") / "result.json"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the test looks at the model itself
    command = [sys.executable, "-m", "tests.sync.offline", str(tiny_model_dir), str(out)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(out.read_text())


pytestmark = pytest.mark.stack


def test_pushed_weights_change_what_is_generated_and_restored_ones_restore_it(result):
    assert result["perturbed"] != result["before"]
    assert result["restored"] == result["before"]
    assert result["again"] == result["perturbed"]
    assert result["twice"] == result["before"]


def test_rejections_reach_the_trainer_and_change_nothing(result):
    refused, mismatched = result["rejections"]
    assert "NaN or Inf in model.norm.weight" in refused
    assert "x: not a tensor of the served checkpoint" in mismatched
    assert result["after_rejection"] == result["before"]


def test_the_next_trainer_connects_after_an_aborted_update(result):
    assert result["after_reconnect"] == result["perturbed"]


def test_a_layer_that_gets_no_weights_is_named(result):
    assert result["partial"].startswith("the model's own loader did not load these layers:")
    assert "model.layers.1.self_attn.qkv_proj" in result["partial"]
    assert "lm_head" not in result["partial"]
    assert result["without_embedding"].endswith("did not load these layers: model.embed_tokens")


def test_an_embedding_is_loaded_where_it_is_and_its_tied_head_answers_with_it(result):
    before, perturbed, restored, *_, last = result["embeddings"]
    for embedding in result["embeddings"]:
        assert embedding["address"] == embedding["head_address"] == before["address"]
        assert embedding["loader"], "vLLM's own loader is in its place again"
        assert embedding["difference"] < 1e-4
    assert perturbed["sum"] != before["sum"]
    assert restored["sum"] == last["sum"] == before["sum"]
