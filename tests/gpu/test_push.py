"""Pushes from a GPU into a model on a GPU, by each of the ways there are."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from sync import CheckError, UnavailableError, WeightSync
from sync.control.client import ControlClient
from sync.push.preflight import SERVER_BACKENDS
from tests.answers import PROMPT, Complete, Weights
from tests.stack.conftest import wait_until
from tritonlive.launch import Stack

from .conftest import TRAINER_DEVICE, needs_gpu, needs_nccl

pytestmark = [pytest.mark.gpu, pytest.mark.stack, needs_gpu]
ROOT = Path(__file__).parents[2]
# A whole update's, after which the engine of a dead NCCL trainer is killed.
DEADLINE_S = 20


@pytest.fixture(
    scope="module", params=[pytest.param("nccl", marks=needs_nccl), "ipc", "gloo"], ids=lambda backend: str(backend)
)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def server(serve: Callable[[str], Stack], backend: str) -> Iterator[Stack]:
    with serve(SERVER_BACKENDS[backend]) as running:
        running.wait_ready(300)
        yield running


@pytest.fixture
def sync(server: Stack, backend: Any) -> Iterator[WeightSync]:
    target = f"grpc://{server.grpc_url}"
    with WeightSync(target, backend=backend, control_key=server.control_key, timeout=60) as client:
        yield client


@pytest.fixture
def original(sync: WeightSync, weights: Weights, complete: Complete) -> str:
    """Output of the checkpoint's weights, which serve again."""
    sync.push(weights, "original")
    text, version = complete()
    assert version == "original"
    return text


def test_what_is_pushed_is_served(sync: WeightSync, weights: Weights, perturbed: Weights, complete: Complete) -> None:
    before, _ = complete()
    report = sync.push(perturbed, "perturbed")
    assert (report.version, report.num_tensors) == ("perturbed", len(perturbed))
    changed, version = complete()
    assert (changed != before, version) == (True, "perturbed")
    sync.push(weights, "restored")
    assert complete() == (before, "restored")
    for number in range(20):
        sync.push(perturbed if number % 2 == 0 else weights, number)
    assert complete() == (before, "19")


def test_streams_live_through_pushes(
    server: Stack, sync: WeightSync, weights: Weights, perturbed: Weights, original: str, complete: Complete
) -> None:
    """Every answer names the versions that made its tokens, in their order."""
    body = PROMPT | {"max_tokens": 1500, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {server.api_key}"}

    def generate(_: int) -> list[str]:
        answer = httpx.post(f"{server.frontend_url}/v1/completions", json=body, headers=headers, timeout=120)
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        assert answer.json()["usage"]["completion_tokens"] == 1500
        return [span["version"] for span in choice["weight_versions"]]

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(generate, range(8))
        for number in range(10):
            sync.push(perturbed if number % 2 == 0 else weights, f"during-{number}")
        spans = list(answers)
    wanted = ["original", *(f"during-{number}" for number in range(10))]
    for versions in spans:
        first = wanted.index(versions[0])
        assert versions == wanted[first : first + len(versions)]
    assert max(len(versions) for versions in spans) > 1
    assert complete() == (original, "during-9")


def test_a_checkpoint_on_disk_goes_through_the_gpu(
    server: Stack, backend: str, perturbed_file: Path, original: str, complete: Complete
) -> None:
    """Its tensors are in host memory, from which NCCL and IPC cannot send."""
    target = ["--to", f"grpc://{server.grpc_url}", "--checkpoint", str(perturbed_file.parent)]
    command = [sys.executable, "-m", "sync", "push", *target, "--backend", backend, "--version", "from-disk"]
    environment = os.environ | {"TRITONLIVE_CONTROL_KEY": server.control_key}
    subprocess.run(command, env=environment, cwd=ROOT, timeout=180, check=True)
    text, version = complete()
    assert (text != original, version) == (True, "from-disk")


def test_what_does_not_fit_changes_nothing(
    sync: WeightSync, weights: Weights, original: str, complete: Complete
) -> None:
    with pytest.raises(CheckError, match=r"model\.norm\.weight"):
        sync.push({name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}, "part")
    assert complete() == (original, "original")


def test_served_and_own_logprobs_agree(
    sync: WeightSync, original: str, perturbed: Weights, tiny_model_dir: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).to(TRAINER_DEVICE)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [30, 40, 50]]
    assert sync.verify(model, prompts, atol=0.3).largest < 0.3
    model.load_state_dict(perturbed, strict=False)
    model.tie_weights()
    sync.push(perturbed, "perturbed")
    assert sync.verify(model, prompts, atol=0.3).largest < 0.3


def test_a_trainer_that_is_killed_in_the_middle(
    server: Stack, backend: str, control: ControlClient, weights: Weights, perturbed_file: Path, complete: Complete
) -> None:
    """Afterwards the weights are complete or refused, never mixed, and the next trainer repairs them."""
    target = f"grpc://{server.grpc_url}"

    def connect() -> WeightSync:
        return WeightSync(target, backend=backend, control_key=server.control_key, timeout=60)  # ty: ignore[invalid-argument-type]

    with connect() as sync:
        sync.push(weights, "original")
    original, _ = complete()
    command = [sys.executable, "-m", "tests.gpu.trainer", target, str(perturbed_file), backend, TRAINER_DEVICE]
    environment = os.environ | {"TRITONLIVE_CONTROL_KEY": server.control_key}
    killed = subprocess.run([*command, str(DEADLINE_S)], env=environment, cwd=ROOT, timeout=180, check=False)
    assert killed.returncode == -signal.SIGKILL

    def has_released() -> bool:
        with suppress(UnavailableError):  # the engine is being started again
            status = control.status()
            return status["state"] in ("serving", "dirty") and status["lease"] is None
        return False

    wait_until(has_released, 180)
    if backend == "ipc":  # it writes into the model, and nothing blocks
        assert control.status()["state"] == "dirty"
        with pytest.raises(httpx.HTTPStatusError, match="503"):
            complete()
    else:
        wait_until(lambda: control.status()["state"] == "serving", 60)
        assert complete()[0] == original
    with connect() as sync:
        sync.push(weights, "healed")
    assert complete() == (original, "healed")
