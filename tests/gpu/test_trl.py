"""Weights from TRL's own clients, unmodified, over NCCL: 1.16.0 on vLLM's routes, 1.10.0 on the legacy ones."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from safetensors.torch import save_file

from tests.answers import Complete, Weights
from tritonlive.launch import Stack

from .conftest import TRAINER_DEVICE, needs_nccl

pytestmark = [pytest.mark.gpu, pytest.mark.stack, needs_nccl]
TRAINERS = Path(__file__).parent


@pytest.fixture(scope="module", params=["nccl", "nccl_trl_legacy"])
def server(serve: Callable[[str], Stack], request: pytest.FixtureRequest) -> Iterator[Stack]:
    with serve(request.param) as running:
        running.wait_ready(300)
        yield running


def test_what_trl_pushes_is_served(
    server: Stack, legacy_trl_dir: Path, weights: Weights, perturbed: Weights, tmp_path: Path, complete: Complete
) -> None:
    is_legacy = "legacy" in " ".join(server.config.extra_args)
    url = server.frontend_url.replace("http://", f"http://trainer:{server.control_key}@")
    packages = [str(legacy_trl_dir)] if is_legacy else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    }

    def push(tensors: Weights) -> None:
        path = tmp_path / "weights.safetensors"
        save_file(tensors, path)
        trainer = TRAINERS / ("legacy_trl_trainer.py" if is_legacy else "trl_trainer.py")
        arguments = [sys.executable, str(trainer), url, str(path), TRAINER_DEVICE]
        subprocess.run(arguments, env=environment, timeout=300, check=True)

    before, _ = complete()
    push(perturbed)
    changed, _ = complete()
    assert changed != before
    push(weights)
    again, _ = complete()
    assert again == before
    info = httpx.get(f"{url}/weight_info", timeout=30).json()
    if is_legacy:
        assert info["weight_version"] == "step-1"
