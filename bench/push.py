"""The loads of a trainer: pushes from a CPU, beside the unavoidable parts of a push."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil

from bench.goals import Goal
from bench.helpers import Broadcast, Offline
from bench.loads import Completions
from bench.measure import Figures, Side
from bench.server_load import ServerSide
from bench.systems import Systems, TritonLive
from bench.trainer import Trainer
from sync import PushReport


@dataclass(frozen=True)
class PushTotal:
    """A whole push, beside the same bytes broadcast by two bare processes and `load_weights` in an idle engine."""

    name: str = "push/total"
    goals: tuple[Goal, ...] = (Goal("seconds", "lower", 1.3),)

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        pushes = TrainerSide("push", systems.trainer, [systems.replica], lambda report: report.seconds)
        return pushes, PartsSide("broadcast + load", systems.broadcast, systems.offline)


@dataclass(frozen=True)
class PushPause:
    """How long a push stops generation, beside `load_weights` in an idle engine."""

    name: str = "push/pause"
    goals: tuple[Goal, ...] = (Goal("seconds", "lower", 1.1),)

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        pushes = TrainerSide("pause", systems.trainer, [systems.replica], lambda report: report.paused_s)
        return pushes, PartsSide("load", None, systems.offline)


@dataclass(frozen=True)
class PushFleet:
    """A push to two replicas beside a push to one of them."""

    name: str = "push/fleet"
    goals: tuple[Goal, ...] = (Goal("seconds", "lower", 1.3),)

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        systems.stop()  # memory does not suffice for two more replicas
        fleet, trainer = systems.fleet, systems.trainer
        two = TrainerSide("two replicas", trainer, fleet, lambda report: report.seconds)
        return two, TrainerSide("one of them", trainer, fleet[:1], lambda report: report.seconds)


@dataclass(frozen=True)
class MixedLoad:
    """Streams with a push in the middle, beside the same streams without one: the cost of a push for clients."""

    name: str = "mixed/push"
    goals: tuple[Goal, ...] = (
        Goal("tokens/s", "higher"),
        Goal("gap p99 ms", "lower", label="gap p99"),
    )
    push_after_s: float = 2.0

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        streams = Completions(kind=self.name, concurrency=16, num_requests=128, max_tokens=16, stream=True)
        replica = systems.replica
        alone = ServerSide("streams alone", replica, streams, systems.settings.served_name)
        return MixedSide("with a push", alone, systems.trainer, replica, self.push_after_s), alone


@dataclass(frozen=True)
class TrainerSide:
    """A trainer that pushes to some replicas."""

    name: str
    trainer: Trainer
    replicas: list[TritonLive]
    seconds: Callable[[PushReport], float]
    """Selects the measured time of a push."""

    def processes(self) -> list[psutil.Process]:
        return [process for replica in self.replicas for process in replica.processes()]

    def warm_up(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        """Connect the trainer to this side's replicas, if it has others."""
        self.trainer.connect(self._addresses)

    def run(self, seed: int) -> Figures:
        report = self.trainer.push(self._addresses)
        phases = ("connect_s", "check_s", "transfer_s", "commit_s", "paused_s", "load_s")
        spent = {f"{phase.removesuffix('_s')} s": getattr(report, phase) for phase in phases}
        return {"seconds": self.seconds(report), "push s": report.seconds, **spent}

    @property
    def _addresses(self) -> list[str]:
        return [replica.push_address for replica in self.replicas]


@dataclass(frozen=True)
class PartsSide:
    """The unavoidable parts of a push, each measured alone. `seconds` is their sum."""

    name: str
    broadcast: Broadcast | None
    offline: Offline

    def processes(self) -> list[psutil.Process]:
        return [*(self.broadcast.processes() if self.broadcast else ()), *self.offline.processes()]

    def warm_up(self) -> None:
        for seed in (0, 1):  # both weight sets
            self.run(seed)

    def prepare(self) -> None:
        """No preparation."""

    def run(self, seed: int) -> Figures:
        parts = {"broadcast s": self.broadcast.seconds()} if self.broadcast else {}
        parts["load s"] = self.offline.load_seconds()
        return {"seconds": sum(parts.values()), **parts}


@dataclass(frozen=True)
class MixedSide:
    """Streams, and a push `push_after_s` seconds after their start."""

    name: str
    streams: ServerSide
    trainer: Trainer
    replica: TritonLive
    push_after_s: float

    def processes(self) -> list[psutil.Process]:
        return self.streams.processes()

    def warm_up(self) -> None:
        self.streams.warm_up()
        self.trainer.connect([self.replica.push_address])

    def prepare(self) -> None:
        """Prepare the streams. The warm-up has connected the trainer."""
        self.streams.prepare()

    def run(self, seed: int) -> Figures:
        with ThreadPoolExecutor(1) as pool:
            figures = pool.submit(self.streams.run, seed)
            time.sleep(self.push_after_s)
            report = self.trainer.push([self.replica.push_address])
            if figures.done():
                raise RuntimeError("the streams ended before the push: nothing was measured")
            return figures.result() | {"push s": report.seconds, "paused s": report.paused_s}
