"""Pushes to the running stack, from processes of their own, while it serves."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sync import CheckError, RefusedError, RejectedError, VerifyError, WeightSync
from sync.control.connect import connect
from sync.control.target import Target
from tests.answers import PROMPT, Weights, complete, perturb

ROOT = Path(__file__).parents[2]
NUM_STREAMS = 16


@pytest.fixture(scope="module")
def weights(tiny_model_dir) -> Weights:
    return load_file(tiny_model_dir / "model.safetensors")


@pytest.fixture(scope="module")
def perturbed(weights) -> Weights:
    return perturb(weights)


@pytest.fixture(scope="module")
def perturbed_dir(perturbed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("perturbed")
    save_file(perturbed, folder / "model.safetensors")
    return folder


@pytest.fixture(params=["http", "grpc"])
def target(request, stack) -> str:
    return stack.frontend_url if request.param == "http" else f"grpc://{stack.grpc_url}"


@pytest.fixture
def control(stack, target):
    with connect(Target.parse(target, stack.control_key), timeout=30) as client:
        yield client


@pytest.fixture
def sync(stack, target):
    with WeightSync(target, backend="gloo", control_key=stack.control_key, timeout=60) as client:
        yield client


@pytest.fixture
def original(stack, target, weights) -> None:
    """The checkpoint's weights serve again, and no trainer is connected."""
    with WeightSync(target, backend="gloo", control_key=stack.control_key, timeout=60) as client:
        client.push(weights)


def start_trainer(stack, target: str, checkpoint: Path, mode: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.sync.stack_trainer", target, str(checkpoint), mode]
    environment = os.environ | {"TRITONLIVE_CONTROL_KEY": stack.control_key}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run_cli(stack, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"TRITONLIVE_CONTROL_KEY": stack.control_key}
    return subprocess.Popen([sys.executable, "-m", "sync", *arguments], env=environment, cwd=ROOT)


def test_a_push_while_streams_run(stack, target, control, weights, perturbed_dir, sync, original):
    before, _ = complete(stack, 60)

    async def stream(client: httpx.AsyncClient, pushed: asyncio.Event) -> int:
        """One stream after another, until one has lived through the push; returns the number of tokens."""
        body = PROMPT | {"max_tokens": 150, "ignore_eos": True, "stream": True}
        tokens, last = 0, ""
        is_last = False
        while not is_last:
            is_last = pushed.is_set()
            async with client.stream("POST", "/v1/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    assert not line.startswith('data: {"error"'), line
                    tokens += line.startswith("data: {")
                    last = line or last
            assert last == "data: [DONE]"
        return tokens

    async def under_load(trainer: subprocess.Popen) -> list[int]:
        pushed = asyncio.Event()
        options: dict[str, Any] = {
            "base_url": stack.frontend_url,
            "headers": {"Authorization": f"Bearer {stack.api_key}"},
            "limits": httpx.Limits(max_keepalive_connections=0),  # a reused connection may be at its end
        }
        async with httpx.AsyncClient(timeout=120, **options) as client:
            streams = [asyncio.create_task(stream(client, pushed)) for _ in range(NUM_STREAMS)]
            await asyncio.sleep(1)
            await asyncio.to_thread(trainer.communicate, "go\n", 60)
            pushed.set()
            return await asyncio.gather(*streams)

    with start_trainer(stack, target, perturbed_dir, "on-command") as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "ready\n"
        tokens = asyncio.run(under_load(trainer))
        assert trainer.returncode == 0
    assert min(tokens) >= 150
    after, version = complete(stack, 60)
    assert (after != before, version) == (True, "on-command")
    assert control.weight_version() == "on-command"
    report = sync.push(weights, "restored")
    assert complete(stack, 60) == (before, "restored")
    assert 0 < report.load_s <= report.paused_s < report.seconds


def test_what_does_not_fit_lists_everything_and_changes_nothing(stack, sync, control, weights):
    version = control.weight_version()
    pushed = {name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}
    pushed["extra"] = torch.ones(1)
    with pytest.raises(CheckError) as caught:
        sync.push(pushed)
    assert len(caught.value.mismatches) == 2
    assert control.status()["state"] == "serving"
    assert control.weight_version() == version


def test_nan_is_refused_and_the_next_push_works(stack, sync, control, weights, original):
    text, version = complete(stack, 60)
    with pytest.raises(RejectedError, match=r"NaN or Inf in model\.norm\.weight"):
        sync.push(weights | {"model.norm.weight": weights["model.norm.weight"] * float("nan")})
    assert control.status()["state"] == "serving"
    assert complete(stack, 60) == (text, version)
    sync.push(weights, "after-nan")
    assert complete(stack, 60) == (text, "after-nan")


def test_without_the_key_nothing_happens(stack, target, weights):
    for key in ("", "wrong", stack.api_key):
        with WeightSync(target, backend="gloo", control_key=key, timeout=10) as sync:
            with pytest.raises(RefusedError):
                sync.push(weights)


@pytest.mark.fault
@pytest.mark.parametrize("mode", ["after-init", "mid-transfer", "before-commit"])
def test_a_trainer_killed_in_a_push(stack, target, control, sync, weights, perturbed_dir, original, mode):
    text, version = complete(stack, 60)
    with start_trainer(stack, target, perturbed_dir, mode) as trainer:
        assert trainer.wait(120) == -signal.SIGKILL
    assert complete(stack, 60) == (text, version)
    deadline = time.monotonic() + 10
    while (status := control.status())["state"] != "serving" or status["lease"] is not None:
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.1)
    sync.push(weights, f"after-{mode}")
    assert complete(stack, 60) == (text, f"after-{mode}")


def test_by_command_line(stack, target, control, perturbed_dir, original):
    before, _ = complete(stack, 60)
    there = ("--to", target)
    assert run_cli(stack, "status", *there).wait(60) == 0
    assert run_cli(stack, "push", *there, "--checkpoint", str(perturbed_dir), "--version", "by-hand").wait(60) == 0
    text, version = complete(stack, 60)
    assert (text != before, version) == (True, "by-hand")


def test_the_logprob_check_sees_weights_that_are_not_the_trainers_and_gates_the_next_push(
    stack, target, sync, tiny_model_dir, weights, perturbed, original
):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    prompts = [[504, 3575, 282, 4649, 314], list(range(100, 140))]
    report = sync.verify(model, prompts, atol=1e-3)
    assert (report.num_tokens, report.targets) == (43, (target,))
    sync.push(perturbed, "elsewhere")
    with pytest.raises(VerifyError, match=r"elsewhere at .*: 43 logprobs differ from the trainer's"):
        sync.verify(model, prompts, atol=1e-3, gate=True)
    with pytest.raises(VerifyError, match=r"no push before verify\(\) succeeds"):
        sync.push(weights, "not-yet")
    assert complete(stack, 60)[1] == "elsewhere"
    model.load_state_dict({name: tensor.float() for name, tensor in perturbed.items()}, strict=False)
    model.tie_weights()
    sync.verify(model, prompts, atol=1e-3, gate=True)
    assert sync.push(weights, "restored").version == "restored"


def test_check_on_the_command_line_lists_everything_against_a_checkpoint_of_another_size(
    stack, target, control, smollm2_dir
):
    version = control.weight_version()
    arguments = ["check", "--to", target, "--checkpoint", str(smollm2_dir)]
    environment = os.environ | {"TRITONLIVE_CONTROL_KEY": stack.control_key, "COLUMNS": "200"}
    command = [sys.executable, "-m", "sync", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert "model.embed_tokens.weight: shape is [49152, 576], served is [49152, 64]" in done.stderr
    assert sum("not a tensor of the served checkpoint" in line for line in lines) == 28 * 9  # 30 layers, served are 2
    assert (control.weight_version(), control.status()["state"]) == (version, "serving")
