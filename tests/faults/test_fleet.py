"""Row 28: one replica of a fleet fails at each step. The fleet never silently serves mixed versions."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sync import CommitError, SyncError, WeightSync
from sync.control.client import ControlClient
from sync.control.connect import connect
from sync.control.target import Target
from sync.push.fleet_update import FleetUpdate
from tests.answers import PROMPT, Weights, ensure_running
from tests.stack.conftest import wait_until
from tritonlive.launch import Stack

pytestmark = pytest.mark.row(28)


@pytest.fixture(scope="module")
def second(second_stack: Stack) -> Stack:
    """The second replica, whose front end knows it alone."""
    ensure_running(second_stack)
    return second_stack


@pytest.fixture
def fleet(stack: Stack, second: Stack, weights: Weights) -> Iterator[WeightSync]:
    """A trainer of both replicas, which serve the checkpoint's weights as version "original"."""
    targets = [stack.frontend_url, f"grpc://{second.grpc_url}"]
    with WeightSync(targets, backend="gloo", control_key=stack.control_key, timeout=60) as sync:
        sync.push(weights, "original")
        yield sync
    wait_until(lambda: all(is_up(replica) for replica in (stack, second)), 180)
    with WeightSync(targets, backend="gloo", control_key=stack.control_key, timeout=60) as sync:
        sync.push(weights, "restored")
    for replica in (stack, second):
        wait_until(lambda replica=replica: is_healthy(replica), 30)
        assert complete(replica)[1] == "restored"


@pytest.fixture
def control(second: Stack) -> Iterator[ControlClient]:
    """Control of the second replica."""
    with connect(Target.parse(f"grpc://{second.grpc_url}", second.control_key), timeout=60) as client:
        yield client


def complete(replica: Stack) -> tuple[str, str]:
    headers = {"Authorization": f"Bearer {replica.api_key}"}
    answer = httpx.post(f"{replica.frontend_url}/v1/completions", json=PROMPT, headers=headers, timeout=60)
    answer.raise_for_status()
    return answer.json()["choices"][0]["text"], answer.headers["x-weight-version"]


def is_up(replica: Stack) -> bool:
    """Whether the replica takes a push."""
    with connect(Target.parse(f"grpc://{replica.grpc_url}", replica.control_key), timeout=30) as client:
        return client.status()["state"] in ("serving", "dirty", "fenced")


def is_healthy(replica: Stack) -> bool:
    return httpx.get(f"{replica.frontend_url}/health", timeout=30).status_code == 200


def kill_engine(replica: Stack) -> None:
    for pid in replica.engine_core_pids:
        os.kill(pid, signal.SIGKILL)


def wait_until_back(control: ControlClient, dead: list[int], replica: Stack) -> None:
    def is_back() -> bool:
        try:
            return replica.engine_core_pids not in (dead, []) and control.status()["state"] in ("serving", "fenced")
        except SyncError:
            return False

    wait_until(is_back, 180)


def test_a_push_flips_both(stack: Stack, second: Stack, fleet: WeightSync, perturbed: Weights) -> None:
    before = complete(stack)
    assert complete(second) == before
    report = fleet.push(perturbed, "flipped")
    assert len(report.targets) == 2
    after = complete(stack)
    assert complete(second) == after
    assert (after[0] != before[0], after[1]) == (True, "flipped")
    assert fleet.rollback() == "original"
    assert complete(stack) == complete(second) == before


def before_start(kill: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    start = FleetUpdate.start_weight_update
    monkeypatch.setattr(FleetUpdate, "start_weight_update", lambda fleet: (kill(), start(fleet))[1])


def before_transfer(kill: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    update = FleetUpdate.update_weights
    monkeypatch.setattr(FleetUpdate, "update_weights", lambda fleet, *info: (update(fleet, *info), kill())[0])


@pytest.mark.parametrize("step", [before_start, before_transfer], ids=["start", "transfer"])
def test_one_is_killed_before_the_commit_and_all_keep_the_old(
    stack: Stack,
    second: Stack,
    fleet: WeightSync,
    control: ControlClient,
    weights: Weights,
    perturbed: Weights,
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[[Any, Any], None],
) -> None:
    before, dead = complete(stack), second.engine_core_pids
    step(lambda: kill_engine(second), monkeypatch)
    with pytest.raises(SyncError) as caught:
        fleet.push(perturbed, "never")
    monkeypatch.undo()
    assert complete(stack) == before
    notes = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert second.grpc_url in notes or "worker 2" in notes or "gloo" in notes
    wait_until_back(control, dead, second)
    assert control.weight_version() == "default", "its own checkpoint, and it says so"
    report = fleet.catch_up(weights, "original")
    assert report is not None
    assert report.targets == (f"grpc://{second.grpc_url}",)
    wait_until(lambda: is_healthy(second), 30)
    assert complete(second) == complete(stack) == before


def test_one_is_killed_at_the_commit_and_is_fenced(
    stack: Stack,
    second: Stack,
    fleet: WeightSync,
    control: ControlClient,
    perturbed: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead = second.engine_core_pids
    prepare = FleetUpdate._prepare
    monkeypatch.setattr(FleetUpdate, "_prepare", lambda fleet: (prepare(fleet), kill_engine(second))[0])
    with pytest.raises(CommitError) as caught:
        fleet.push(perturbed, "half")
    monkeypatch.undo()
    assert caught.value.committed == (stack.frontend_url,)
    assert list(caught.value.failed) == [f"grpc://{second.grpc_url}"]
    assert complete(stack)[1] == "half"
    wait_until_back(control, dead, second)
    status = control.status()
    assert (status["state"], "half is live at" in status["reason"]) == ("fenced", True)
    headers = {"Authorization": f"Bearer {second.api_key}"}

    def refuses() -> bool:
        answer = httpx.post(f"{second.frontend_url}/v1/completions", json=PROMPT, headers=headers, timeout=60)
        return answer.status_code == 503 and "fenced" in answer.text

    wait_until(refuses, 30)
    assert fleet.catch_up(perturbed, "half") is not None
    assert fleet.catch_up(perturbed, "half") is None
    wait_until(lambda: is_healthy(second), 30)
    assert complete(second) == complete(stack)
