"""One worker stages for all of its machine: real processes, real signals."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sync import RejectedError, TransferError
from sync.transport.trainer.frame_writer import FrameWriter
from sync.transport.trainer.gloo_trainer import GlooTrainerInitInfo
from sync.weights.digest import tensor_digest
from sync.weights.open_source import open_source
from tests.sync.driven_trainer import DrivenTrainer

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")

WORKER = Path(__file__).parents[1] / "worker_process.py"
NUM_TENSORS = 12
NUM_ELEMENTS = 2**20  # of float32: 4 MiB


def weights(version: int) -> dict[str, torch.Tensor]:
    """Any two versions differ in all tensors."""
    return {f"layers.{number}": torch.full((NUM_ELEMENTS,), version + number / 100) for number in range(NUM_TENSORS)}


def digests(version: int) -> dict[str, int]:
    return {name: tensor_digest(tensor) for name, tensor in weights(version).items()}


class Worker:
    """A process that runs worker_process.py."""

    def __init__(self) -> None:
        command = [sys.executable, str(WORKER)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, operation: str, **arguments: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{json.dumps([operation, arguments])}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def inodes(self) -> list[int | None]:
        """Inodes of the memory of the current and the previous version."""
        return [version and version[0] for version in self.ask("versions")]

    def holds(self, *versions: int) -> bool:
        """Whether these are its current version and, where named, the one before it."""
        held = self.ask("versions")[: len(versions)]
        return [version and version[1] for version in held] == [digests(version) for version in versions]


class Team:
    """A trainer's client of some workers; each does with an update what `endings` says."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self.endings = ["commit"] * len(workers)
        self.source = open_source(weights(0))
        self.trainer = DrivenTrainer(
            GlooTrainerInitInfo("127.0.0.1", 0, len(workers) + 1, 10.0), self, open_source(weights(0))
        )
        assert self.trainer.transport == "shared memory"

    def push(self, version: int, *endings: str) -> None:
        self.endings = list(endings) or ["commit"] * len(self.workers)
        self.trainer.source = open_source(weights(version))
        self.trainer.push()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        membership = {key: value for key, value in init_info.items() if key not in ("rank_offset", "keep_previous")}
        for rank, worker in enumerate(self.workers, start=1):
            worker.ask("join", membership=membership | {"rank": rank})

    def start_weight_update(self) -> None:
        """Nothing."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        for worker in self.workers:
            worker.ask("announce", **update_info)

    def finish_weight_update(self) -> None:
        for worker, ending in zip(self.workers, self.endings, strict=True):
            worker.ask(ending)


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """The one that leads, and the one that follows."""
    running = [Worker(), Worker()]
    yield running
    for worker in running:
        worker.kill()


@pytest.fixture
def team(workers: list[Worker]) -> Iterator[Team]:
    made = Team(workers)
    yield made
    made.trainer.shutdown()


def test_both_load_from_the_same_memory(team, workers):
    for version in range(1, 8):
        team.push(version)
        assert all(worker.holds(*range(version, max(0, version - 2), -1)) for worker in workers)
        assert workers[0].inodes == workers[1].inodes


def test_pushes_take_turns_in_three_segments(team, workers):
    used = set()
    for version in range(1, 9):
        team.push(version)
        used.add(workers[0].inodes[0])
    assert len(used) == 3
    for worker in workers:
        files = list(Path(f"/proc/{worker.process.pid}/fd").iterdir())
        open_segments = {file.stat().st_ino for file in files if "tritonlive-update" in str(file.readlink())}
        assert open_segments == used


@pytest.mark.fault
@pytest.mark.parametrize("victim", [0, 1], ids=["leader", "follower"])
def test_a_worker_killed_in_the_middle_of_a_transfer(team, workers, victim):
    team.push(1)
    survivor = workers[1 - victim]

    def kill(sent: int, total: int) -> None:
        if sent * 2 > total:
            workers[victim].kill()

    team.trainer.progress = kill
    began = time.monotonic()
    with pytest.raises(TransferError, match=f"worker {victim + 1} is gone"):
        team.push(2)
    assert time.monotonic() - began < 5
    team.trainer.shutdown()
    while survivor.ask("state") == "receiving":
        time.sleep(0.02)
    assert survivor.ask("state") == "failed"
    assert survivor.holds(1)
    alone = Team([survivor])
    for version in (3, 4, 5):
        alone.push(version)
    assert survivor.holds(5, 4)
    alone.trainer.shutdown()


@pytest.mark.fault
@pytest.mark.row(25)
def test_nan_is_refused_by_both(team, workers):
    team.push(1)
    broken = weights(2)
    broken["layers.3"][5] = float("nan")
    team.trainer.source = open_source(broken)
    with pytest.raises(RejectedError) as caught:
        team.trainer.push()
    why = "rejects what arrived: NaN or Inf in layers.3"
    assert str(caught.value) == f"worker 1 {why}; worker 2 {why}"
    assert all(worker.holds(1) and worker.ask("state") == "ready" for worker in workers)
    team.push(2)
    assert all(worker.holds(2, 1) for worker in workers)


@pytest.mark.fault
def test_damage_is_refused_by_both(team, workers, monkeypatch):
    finish = FrameWriter.finish

    def falsify(writer: FrameWriter) -> list[int]:
        first, *others = finish(writer)
        return [first ^ 1, *others]

    monkeypatch.setattr(FrameWriter, "finish", falsify)
    with pytest.raises(RejectedError) as caught:
        team.push(1)
    why = "rejects what arrived: not the bytes that were sent: layers.0"
    assert str(caught.value) == f"worker 1 {why}; worker 2 {why}"
    assert [worker.ask("state") for worker in workers] == ["ready", "ready"]


@pytest.mark.parametrize("ending", ["drop", "forget"])
def test_what_a_follower_keeps_is_not_written_to(team, workers, ending):
    """The leader's commit failed, the follower's did not: its current version lies where the leader would stage."""
    leader, follower = workers
    for version in (1, 2):
        team.push(version)
    team.push(3, ending, "commit")
    assert (leader.holds(2, 1), follower.holds(3, 2)) == (True, True)
    before = leader.inodes + follower.inodes
    team.push(4, "commit", "drop")
    assert (leader.holds(4, 2), follower.holds(3, 2)) == (True, True)
    assert leader.inodes[0] not in before
    for version in range(5, 10):
        team.push(version)
    assert all(worker.holds(9, 8) for worker in workers)
    assert leader.inodes == follower.inodes


@pytest.mark.parametrize("who", [0, 1], ids=["leader", "follower"])
def test_a_rollback_at_one_only(team, workers, who):
    for version in (1, 2):
        team.push(version)
    workers[who].ask("roll_back")
    assert workers[who].holds(1, 2)
    team.push(3)
    assert (workers[who].holds(3, 1), workers[1 - who].holds(3, 2)) == (True, True)
    for version in range(4, 9):
        team.push(version)
        assert all(worker.holds(version, version - 1) for worker in workers)


def test_pushes_to_both_and_to_one_in_turns_take_five_segments(workers):
    """The kept versions, and one to stage in."""
    leader, follower = workers
    used = []
    shared = 0
    for version in range(1, 17):
        is_both = version % 4 < 2
        team = Team(workers if is_both else [leader])
        team.push(version)
        team.trainer.shutdown()
        shared = version if is_both else shared
        assert leader.holds(*range(version, max(0, version - 2), -1))
        assert not shared or follower.holds(shared)
        used.append(leader.inodes[0])
    assert len(set(used)) == 5


def test_a_follower_alone_leads(team, workers):
    leader, follower = workers
    for version in (1, 2, 3):
        team.push(version)
    team.trainer.shutdown()
    alone = Team([follower])
    for version in (4, 5, 6):
        alone.push(version)
        assert follower.holds(version, version - 1)
        assert leader.holds(3, 2)
    assert not set(follower.inodes) & set(leader.inodes)
    alone.trainer.shutdown()
    again = Team([follower, leader])
    for version in (7, 8, 9):
        again.push(version)
        assert all(worker.holds(version) for worker in workers)
    assert follower.inodes == leader.inodes
    again.trainer.shutdown()
