"""Measures both sides of a load in turn, several times, with the processor time of each side."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import psutil

from bench.goals import Goal
from bench.process_kinds import SERVING, CpuTimes
from bench.stats import Spread

SETTLE_S = 1.2
"""Idle time before each run. An engine's processes spin for a second after their last work."""

Figures = dict[str, float]
"""Figures of one run by name; a name ends with its unit."""


class Side(Protocol):
    """One side of a load. A load has one or two sides."""

    @property
    def name(self) -> str: ...

    def processes(self) -> list[psutil.Process]:
        """All processes that work for the side, except this one and the load client."""
        ...

    def warm_up(self) -> None: ...

    def prepare(self) -> None:
        """Prepare a run. This is not measured."""
        ...

    def run(self, seed: int) -> Figures:
        """Do the work once. Another seed gives other content of the same size."""
        ...


class Load(Protocol):
    """Work of the sides, and the goals for ours. A load is a dataclass; the results file contains its fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    @property
    def goals(self) -> tuple[Goal, ...]: ...


@dataclass(frozen=True)
class Effort:
    """How often a load is measured: at least `least` times, then until `seconds` have passed, at most `most` times.

    A load that takes very long can set `least_repeats`, which replaces `least`.
    """

    least: int
    most: int
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """One run of one side."""

    figures: Figures
    cpu_s: float
    """Processor time of all the side's processes."""
    foreign_share: float
    """Share of the machine's processor time used by neither the side nor the harness. Above a few percent, other work
    disturbed the figure."""
    cpu_by_kind_s: dict[str, float] = field(default_factory=dict)
    """Processor time by kind of process (see process_kinds.py)."""


@dataclass(frozen=True)
class Row:
    """One goal of a load, and the value reached."""

    name: str
    goal: Goal
    reached: Spread
    result: "Result"

    @property
    def verdict(self) -> str:
        return self.goal.verdict(self.reached)


@dataclass(frozen=True)
class Result:
    """All measurements of one load. The n-th of ours and the n-th of theirs form a pair, measured in succession."""

    load: Load
    ours: str
    theirs: str
    """Empty if there is no other side."""
    measurements: dict[str, list[Measurement]]

    @property
    def sides(self) -> list[str]:
        """Ours, and theirs if there is one."""
        return list(self.measurements)

    def values(self, side: str, figure: str) -> list[float]:
        """One figure of all runs of a side; empty if the side does not have it."""
        return [one.figures[figure] for one in self.measurements.get(side, []) if figure in one.figures]

    def spread(self, side: str, figure: str) -> Spread | None:
        values = self.values(side, figure)
        return Spread.of(values) if values else None

    @property
    def rows(self) -> list[Row]:
        """A row for each goal."""
        return [
            Row(
                f"{self.load.name} {goal.label}".strip(),
                goal,
                goal.reached(self.values(self.ours, goal.figure), self.values(self.theirs, goal.figure)),
                self,
            )
            for goal in self.load.goals
        ]

    @property
    def repeats(self) -> int:
        return len(self.measurements[self.ours])

    @property
    def foreign_share(self) -> float:
        """The median over all measurements."""
        return Spread.of([one.foreign_share for many in self.measurements.values() for one in many]).median


def run_load(load: Load, sides: Sequence[Side], effort: Effort, on_run: Callable[[str], None]) -> Result:
    """Measure both sides, interleaved: A B B A A B … A single side is measured as often.

    Only one side works at a time, after the other has become idle and takes no processor time. The order is reversed
    with each repeat, so that a machine whose speed drifts favours neither side.

    Args:
        load: the work.
        sides: ours, and theirs if there is one; both are running.
        effort: number of repeats.
        on_run: called before each run with a description of it.

    Raises:
        LoadError: if any request fails.
    """
    least = min(effort.least, getattr(load, "least_repeats", effort.least))
    for side in sides:
        on_run(f"{load.name}, {side.name}: warm-up")
        side.warm_up()
    measurements: dict[str, list[Measurement]] = {side.name: [] for side in sides}
    began = time.perf_counter()
    for repeat in range(effort.most):
        if repeat >= least and time.perf_counter() - began > effort.seconds:
            break
        for side in sides if repeat % 2 == 0 else reversed(sides):
            on_run(f"{load.name}, {side.name}: {repeat + 1} of {least} to {effort.most}")
            side.prepare()
            time.sleep(SETTLE_S)
            measurements[side.name].append(measure(side, seed=repeat))
    return Result(load, sides[0].name, sides[1].name if len(sides) > 1 else "", measurements)


def measure(side: Side, seed: int) -> Measurement:
    """One run of one side."""
    cpu_times = CpuTimes(side.processes())
    own_before, busy_before, started = _own_cpu(), _busy_cpu(), time.perf_counter()
    figures = side.run(seed)
    by_kind, busy_s = cpu_times.by_kind(), _busy_cpu() - busy_before
    side_s = sum(by_kind.values())
    available_s = (time.perf_counter() - started) * (psutil.cpu_count() or 1)
    foreign_s = max(0.0, busy_s - side_s - (_own_cpu() - own_before))
    if tokens := figures.get("completion tokens"):
        figures["CPU per token µs"] = side_s / tokens * 1e6
        figures["serving CPU per token µs"] = sum(by_kind.get(kind, 0.0) for kind in SERVING) / tokens * 1e6
    return Measurement(figures, side_s, foreign_s / available_s, by_kind)


def _own_cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _busy_cpu() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait
