"""Rows 21 to 27 of the fault list: trainers that hang, die, compete or send nonsense, against the running stack."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

from sync import CheckError, ConflictError, RejectedError, WeightSync
from sync.control.client import ControlClient
from sync.push.fleet_update import FleetUpdate
from tests.answers import PROMPT, Complete, Weights
from tests.stack.conftest import wait_until
from tritonlive.launch import Stack
from tritonlive.wire.operations.engine import InFlightMode

ROOT = Path(__file__).parents[2]
NUM_TOKENS = 400


def start_trainer(stack: Stack, checkpoint: Path, mode: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.sync.stack_trainer", stack.frontend_url, str(checkpoint), mode, *options]
    environment = os.environ | {"TRITONLIVE_CONTROL_KEY": stack.control_key or ""}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


SECRET = "00" * 32


@pytest.mark.row(21)
def test_a_trainer_that_never_joins(
    control: ControlClient, complete: Complete, original: tuple[str, str], weights: Weights
) -> None:
    """The trainer connects the workers, announces an update, and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"master_address": "127.0.0.1", "master_port": silent.getsockname()[1]}
        info = address | {"world_size": 2, "timeout_s": 3, "secret": SECRET}
        control.init_weight_transfer_engine(info)
        control.start_weight_update()
        control.update_weights(
            {
                "names": list(weights),
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()],
                "shapes": [list(tensor.shape) for tensor in weights.values()],
            }
        )
        assert complete() == original
        wait_until(lambda: control.status()["state"] == "serving", 15)
    assert control.timeline()["updates"][-1]["outcome"] == "aborted"
    assert complete() == original


@pytest.mark.row(22)
@pytest.mark.parametrize("mode", ["after-init", "mid-transfer", "mid-broadcast", "before-commit"])
def test_a_trainer_that_is_killed(
    stack: Stack, control: ControlClient, complete: Complete, original: tuple[str, str], tiny_model_dir: Path, mode: str
) -> None:
    with start_trainer(stack, tiny_model_dir, mode) as trainer:
        assert trainer.wait(120) == -signal.SIGKILL
    assert complete() == original
    wait_until(lambda: control.status()["state"] == "serving" and control.status()["lease"] is None, 15)


@pytest.mark.row(23)
def test_a_second_trainer_is_refused_while_the_first_lives(
    stack: Stack, sync: WeightSync, complete: Complete, original: tuple[str, str], weights: Weights, perturbed: Weights
) -> None:
    sync.push(weights, "first")
    with WeightSync(f"grpc://{stack.grpc_url}", backend="gloo", control_key=stack.control_key, timeout=30) as second:
        with pytest.raises(ConflictError, match="is connected; its lease runs out in"):
            second.push(perturbed, "second")
    assert complete() == (original[0], "first")
    assert sync.push(weights, "still-first").version == "still-first"


@contextmanager
def connected_trainer(stack: Stack, checkpoint: Path) -> Iterator[subprocess.Popen]:
    """A trainer that holds a lease of 3 s and does nothing more. Killed at the end."""
    with start_trainer(stack, checkpoint, "connected", "3") as trainer:
        assert trainer.stdout is not None
        try:
            assert trainer.stdout.readline() == "connected\n"
            yield trainer
        finally:
            trainer.kill()


@pytest.mark.row(23)
def test_a_trainer_that_hangs_loses_its_lease(
    stack: Stack, control: ControlClient, complete: Complete, original: tuple[str, str], tiny_model_dir: Path
) -> None:
    """SIGSTOP keeps its connections open and ends its heartbeat."""
    with connected_trainer(stack, tiny_model_dir) as trainer:
        time.sleep(4)
        assert control.status()["lease"] is not None, "the heartbeat renews it"
        trainer.send_signal(signal.SIGSTOP)
        wait_until(lambda: control.status()["lease"] is None, 15)
    assert complete()[0] == original[0]


@pytest.mark.row(23)
def test_a_trainer_that_knocks_does_not_keep_a_hanging_one_in(
    stack: Stack, control: ControlClient, complete: Complete, original: tuple[str, str], tiny_model_dir: Path
) -> None:
    """Only the holder's own calls renew its lease."""
    with connected_trainer(stack, tiny_model_dir) as trainer:
        trainer.send_signal(signal.SIGSTOP)
        knocks: list[str] = []
        address = {"master_address": "127.0.0.1", "master_port": 1, "secret": SECRET}
        knock = address | {"world_size": 2, "timeout_s": 5, "holder": "b"}

        def is_free() -> bool:
            try:
                control.init_weight_transfer_engine(knock)
            except ConflictError as refusal:
                knocks.append(str(refusal))
                return False
            return True

        wait_until(is_free, 15)
        assert len(knocks) > 5
    wait_until(lambda: control.status()["lease"] is None, 15)  # the knocker's own rendezvous is not there
    assert complete()[0] == original[0]


@pytest.mark.row(24)
def test_what_does_not_fit_is_listed_whole(
    sync: WeightSync, control: ControlClient, complete: Complete, original: tuple[str, str], weights: Weights
) -> None:
    pushed = {name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}
    pushed["unknown.weight"] = torch.ones(1)
    pushed["model.layers.0.input_layernorm.weight"] = torch.ones(3)
    pushed["model.layers.1.input_layernorm.weight"] = pushed["model.layers.1.input_layernorm.weight"].to(torch.int32)
    with pytest.raises(CheckError) as caught:
        sync.push(pushed)
    text = str(caught.value)
    for part in ("model.norm.weight: missing", "unknown.weight", "shape is [3]", "dtype int32"):
        assert part in text
    assert len(caught.value.mismatches) == 4
    assert complete() == original
    assert control.status()["state"] == "serving"


@pytest.mark.row(25)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(
    sync: WeightSync,
    control: ControlClient,
    complete: Complete,
    original: tuple[str, str],
    weights: Weights,
    poison: float,
) -> None:
    with pytest.raises(RejectedError, match=r"NaN or Inf in model\.norm\.weight"):
        sync.push(weights | {"model.norm.weight": weights["model.norm.weight"] * poison})
    assert complete() == original
    assert control.timeline()["updates"][-1]["outcome"] == "aborted"


@pytest.mark.row(26)
def test_control_operations_at_once_and_under_full_load(
    stack: Stack,
    sync: WeightSync,
    control: ControlClient,
    complete: Complete,
    original: tuple[str, str],
    weights: Weights,
) -> None:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    body = PROMPT | {"prompt": [PROMPT["prompt"]] * 16, "max_tokens": 60, "ignore_eos": True}

    def load() -> int:
        return httpx.post(f"{stack.frontend_url}/v1/completions", json=body, headers=headers, timeout=120).status_code

    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(load) for _ in range(8)]
        statuses = [pool.submit(control.status) for _ in range(4)]
        pushes = [pool.submit(sync.push, weights, "under-load")]
        versions = [pool.submit(control.weight_version) for _ in range(4)]
        assert pushes[0].result(60).version == "under-load"
        assert all(status.result(60)["state"] in ("serving", "updating") for status in statuses)
        assert all(version.result(60) in ("original", "under-load") for version in versions)
        assert [answer.result(120) for answer in answers] == [200] * 8
    assert complete() == (original[0], "under-load")


@pytest.mark.row(27)
@pytest.mark.parametrize("in_flight", ["keep", "wait", "abort"])
def test_a_push_while_requests_run(
    stack: Stack,
    sync: WeightSync,
    control: ControlClient,
    complete: Complete,
    original: tuple[str, str],
    weights: Weights,
    perturbed: Weights,
    in_flight: InFlightMode,
) -> None:
    """Each token has the version that made it, and prefixes cached with the old weights are not reused."""
    sync.push(weights, "original")  # connects; changes nothing
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    # Few tokens, greedy: some machines take 40 ms to sample 32 tokens, and the push has a time limit.
    body = PROMPT | {"prompt": [PROMPT["prompt"]] * 12, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            httpx.post, f"{stack.frontend_url}/v1/completions", json=body, headers=headers, timeout=120
        )
        wait_until(lambda: running.done() or control.timeline()["in_flight"].get("original", 0) > 8, 30)
        sync.push(perturbed, "pushed", in_flight=in_flight)
        answer = running.result(120)
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    for choice in choices:
        spans = [(span["version"], span["start"], span["end"]) for span in choice["weight_versions"]]
        assert spans[0][:2] == ("original", 0)
        match in_flight:
            case "keep":
                assert [span[0] for span in spans] == ["original", "pushed"]
                assert spans[1][1:] == (spans[0][2], NUM_TOKENS)
            case "wait":
                assert spans == [("original", 0, NUM_TOKENS)]
            case "abort":
                assert choice["finish_reason"] == "abort"
                assert len(spans) == 1
                assert 0 < spans[0][2] < NUM_TOKENS
    text, version = complete()
    assert (text != original[0], version) == (True, "pushed")
    cold, _ = complete()
    assert cold == text


@pytest.mark.row(22)
def test_an_engine_that_cannot_be_interrupted_is_started_again(
    stack: Stack,
    control: ControlClient,
    sync: WeightSync,
    complete: Complete,
    original: tuple[str, str],
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stopped engine acts like a worker in a broadcast that cannot be interrupted (NCCL)."""
    (engine,) = stack.engine_core_pids
    start = FleetUpdate.start_weight_update

    def stop_first(fleet: FleetUpdate) -> None:
        os.kill(engine, signal.SIGSTOP)
        start(fleet)

    monkeypatch.setattr(FleetUpdate, "start_weight_update", stop_first)
    with WeightSync(stack.frontend_url, backend="gloo", control_key=stack.control_key, timeout=8) as hurried:
        with pytest.raises(Exception, match=r"within|restarting|started again"):
            hurried.push(weights, "never")
    monkeypatch.undo()
    wait_until(lambda: stack.engine_core_pids not in ([engine], []), 60)
    wait_until(lambda: control.status()["state"] == "serving", 120)
    wait_until(lambda: httpx.get(f"{stack.frontend_url}/health", timeout=30).status_code == 200, 60)
    assert complete() == (original[0], "default")


def test_a_push_that_changes_nothing_says_so(
    stack: Stack, sync: WeightSync, complete: Complete, original: tuple[str, str], weights: Weights, perturbed: Weights
) -> None:
    report = sync.push(weights, "same")
    assert report.unchanged == (stack.frontend_url,)
    assert report.paused_s == 0
    assert "unchanged at" in str(report)
    assert complete() == (original[0], "same")
    assert sync.push(perturbed, "other").unchanged == ()


def test_a_fenced_replica_that_gets_the_weights_it_has_serves_again(
    stack: Stack, control: ControlClient, complete: Complete, original: tuple[str, str], weights: Weights
) -> None:
    control.fence("test")
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        complete()
    with WeightSync(stack.frontend_url, backend="gloo", control_key=stack.control_key, timeout=60) as sync:
        assert sync.push(weights, "same").unchanged == (stack.frontend_url,)
    assert complete() == (original[0], "same")


def test_rollback(
    sync: WeightSync, complete: Complete, original: tuple[str, str], perturbed: Weights, control: ControlClient
) -> None:
    sync.push(perturbed, "worse")
    worse = complete()
    assert worse[0] != original[0]
    assert sync.rollback() == "original"
    assert complete() == original
    assert sync.rollback() == "worse"
    assert complete() == worse
    assert [update["kind"] for update in control.timeline()["updates"][-3:]] == ["push", "rollback", "rollback"]


def test_without_a_previous_version_there_is_no_rollback(
    stack: Stack, complete: Complete, original: tuple[str, str], perturbed: Weights
) -> None:
    with WeightSync(stack.frontend_url, backend="gloo", control_key=stack.control_key, keep_previous=False) as sync:
        sync.push(perturbed, "worse")
        with pytest.raises(ConflictError, match="no previous version is kept"):
            sync.rollback()
    assert complete()[1] == "worse"
