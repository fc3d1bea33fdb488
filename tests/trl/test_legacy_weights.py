"""Weights from TRL 1.10.0's own client, over NCCL. Needs two GPUs: the server's and the trainer's."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from launch import Stack, StackConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.stack,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a GPU for the trainer besides the server's"),
]

PROMPT = {"prompts": ["Once upon a time"], "temperature": 0.0, "max_tokens": 8}


@pytest.fixture(scope="module")
def server(stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    transfer = ("--weight-transfer-config", '{"backend": "nccl_trl_legacy"}')
    logs = tmp_path_factory.mktemp("trl-legacy-logs")
    with Stack(replace(stack_config, extra_args=(*stack_config.extra_args, *transfer), log_dir=logs)) as running:
        running.wait_ready(300)
        yield running


def test_what_trl_pushes_is_served(server: Stack, legacy_trl_dir: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    url = server.frontend_url.replace("http://", f"http://trainer:{server.control_key}@")
    original = load_file(tiny_model_dir / "model.safetensors")
    perturbed = {name: tensor + torch.randn_like(tensor) * tensor.std() * 0.3 for name, tensor in original.items()}
    environment = os.environ | {"PYTHONPATH": str(legacy_trl_dir)}

    def push(tensors: dict[str, torch.Tensor]) -> list[list[int]]:
        path = tmp_path / "weights.safetensors"
        save_file(tensors, path)
        trainer = Path(__file__).with_name("legacy_trainer.py")
        arguments = [sys.executable, str(trainer), url, str(path), "cuda:1"]
        subprocess.run(arguments, env=environment, timeout=300, check=True)
        return generate()

    def generate() -> list[list[int]]:
        return httpx.post(f"{url}/generate/", json=PROMPT, timeout=120).raise_for_status().json()["completion_ids"]

    before = generate()
    assert push(perturbed) != before
    assert push(original) == before
    assert httpx.get(f"{url}/weight_info", timeout=30).json()["weight_version"] == "step-1"
