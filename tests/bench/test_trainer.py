"""The harness's trainer never pushes weights that a replica already has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.trainer
from bench.trainer import Trainer
from sync import PushReport

REPORT = PushReport("v1", 8, 1, 2.0, 0.1, 0.2, 1.0, 0.7, 0.6, 0.5, ("grpc://a:1",))


class Replicas:
    """Makes fakes of `WeightSync`. Knows the weights of each replica, like a server."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.pushes: list[tuple[str, ...]] = []
        self.num_open = 0

    def sync(self, addresses: list[str], **options: Any) -> "Sync":
        self.num_open += 1
        assert self.num_open == 1, "a second trainer is refused while the first is connected"
        return Sync(self, addresses)


class Sync:
    def __init__(self, replicas: Replicas, addresses: list[str]) -> None:
        self.replicas, self.addresses = replicas, addresses

    def push(self, source: dict[str, torch.Tensor]) -> PushReport:
        pushed = int(source["w"])
        same = tuple(address for address in self.addresses if self.replicas.held.get(address, 0) == pushed)
        self.replicas.held |= dict.fromkeys(self.addresses, pushed)
        self.replicas.pushes.append(tuple(self.addresses))
        return replace(REPORT, unchanged=same)

    def close(self) -> None:
        self.replicas.num_open -= 1


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Replicas:
    replicas = Replicas()
    monkeypatch.setattr(bench.trainer, "WeightSync", replicas.sync)
    monkeypatch.setattr(bench.trainer, "weight_set", lambda checkpoint, seed: {"w": torch.tensor(seed)})
    return replicas


def test_one_replica_and_two_in_turns_always_get_something_new(replicas: Replicas):
    trainer = Trainer(Path("m"))
    for addresses in (["a"], ["a", "b"], ["a"], ["a"], ["a", "b"]):
        trainer.connect(addresses)
        assert trainer.push(addresses).unchanged == ()
    trainer.close()
    assert replicas.num_open == 0


def test_a_replica_is_warm_before_it_is_measured(replicas: Replicas):
    trainer = Trainer(Path("m"))
    trainer.connect(["a"])
    trainer.connect(["a"])
    assert replicas.pushes == [("a",)] * 3
    trainer.connect(["a", "b"])
    assert replicas.pushes[3:] == [("a", "b")] * 3
    trainer.connect(["a"])
    assert replicas.pushes[6:] == [("a",)]


def test_an_unchanged_push_is_no_measurement(replicas: Replicas):
    trainer = Trainer(Path("m"))
    trainer.connect(["a"])
    replicas.held["a"] = next(number for number in range(3) if number != replicas.held["a"])
    with pytest.raises(RuntimeError, match="had these weights already"):
        trainer.push(["a"])


def test_a_push_to_others_than_connected_is_a_mistake(replicas: Replicas):
    trainer = Trainer(Path("m"))
    with pytest.raises(RuntimeError, match="connect"):
        trainer.push(["a"])
