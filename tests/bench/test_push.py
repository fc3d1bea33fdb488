"""The figures of a push and their counterparts. The trainer and the helpers are stand-ins; no stack runs."""

import time
from typing import Any

import pytest

from bench.push import MixedSide, PartsSide, PushFleet, PushPause, PushTotal, TrainerSide
from sync import PushReport

REPORT = PushReport("v1", 8, 1, 2.0, 0.1, 0.2, 1.0, 0.7, 0.6, 0.5, ("grpc://a:1",))


class Replica:
    def __init__(self, address: str) -> None:
        self.push_address = address

    def processes(self) -> list[Any]:
        return [self.push_address]


class Trainer:
    """Records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def connect(self, addresses: list[str]) -> None:
        self.calls.append(("connect", addresses))

    def push(self, addresses: list[str]) -> PushReport:
        self.calls.append(("push", addresses))
        return REPORT


class Helper:
    """Stands for a broadcast and for an offline engine."""

    def processes(self) -> list[Any]:
        return ["helper"]

    def seconds(self) -> float:
        return 1.0

    def load_seconds(self) -> float:
        return 0.5


class Systems:
    def __init__(self) -> None:
        self.trainer, self.broadcast, self.offline = Trainer(), Helper(), Helper()

        self.replica = Replica("a")
        self.fleet = [Replica("a"), Replica("b")]
        self.num_stops = 0

    def stop(self) -> None:
        self.num_stops += 1


# The fakes have the used methods of the real classes, but not their types.
SYSTEMS: Any = Systems
TRAINER: Any = Trainer
REPLICA: Any = Replica("a")
HELPER: Any = Helper()


@pytest.mark.parametrize(
    ("load", "ours", "theirs"),
    [(PushTotal(), 2.0, 1.5), (PushPause(), 0.6, 0.5), (PushFleet(), 2.0, 2.0)],
)
def test_a_push_is_held_against_what_it_cannot_do_without(load, ours, theirs):
    one, other = load.sides(SYSTEMS())
    assert one.run(seed=0)["seconds"] == ours
    assert other.run(seed=0)["seconds"] == theirs
    assert one.name != other.name


def test_a_fleet_is_two_replicas_beside_one():
    systems = SYSTEMS()
    two, one = PushFleet().sides(systems)
    assert systems.num_stops == 1
    assert two.processes() == ["a", "b"]
    assert one.processes() == ["a"]


def test_a_push_is_measured_with_the_group_formed_and_its_phases_are_kept():
    trainer = TRAINER()
    side = TrainerSide("push", trainer, [REPLICA], lambda report: report.seconds)
    side.warm_up()
    side.prepare()
    figures = side.run(seed=0)
    assert trainer.calls == [("connect", ["a"]), ("connect", ["a"]), ("push", ["a"])]
    assert figures["transfer s"] == 1.0
    assert figures["commit s"] == 0.7


def test_parts_are_summed_and_kept():
    assert PartsSide("both", HELPER, HELPER).run(0) == {"seconds": 1.5, "broadcast s": 1.0, "load s": 0.5}
    assert PartsSide("load", None, HELPER).run(0) == {"seconds": 0.5, "load s": 0.5}


class Streams:
    """Take a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, seed: int) -> dict[str, float]:
        time.sleep(self.seconds)
        return {"tokens/s": 1.0}


def streams(seconds: float) -> Any:
    return Streams(seconds)


def test_the_push_of_a_mixed_load_falls_into_its_streams():
    trainer = TRAINER()
    side = MixedSide("mixed", streams(0.3), trainer, REPLICA, push_after_s=0.05)
    assert side.run(seed=0) == {"tokens/s": 1.0, "push s": 2.0, "paused s": 0.6}
    assert trainer.calls == [("push", ["a"])]


def test_a_push_after_the_streams_is_no_measurement():
    side = MixedSide("mixed", streams(0.0), TRAINER(), REPLICA, push_after_s=0.1)
    with pytest.raises(RuntimeError, match="ended before the push"):
        side.run(seed=0)
