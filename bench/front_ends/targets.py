"""What our front ends should reach, beside which other one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bench.front_ends.names import OURS, OURS_RUST, VLLM, VLLM_RUST
from bench.front_ends.stream_load import StreamLoad
from bench.goals import Goal
from bench.measure import Load, Result, Row

SERVING = "serving CPU per token µs"
TTFT = "ttft mean ms"


@dataclass(frozen=True)
class Target:
    """A goal of one system beside another, for some loads."""

    system: str
    baseline: str
    goal: Goal
    applies: Callable[[Any], bool]

    def row(self, result: Result) -> Row | None:
        """The row of a result; None if the target is not for its load, or if one of the two was not measured."""
        if not self.applies(result.load) or not {self.system, self.baseline} <= set(result.sides):
            return None
        pair = replace(result, ours=self.system, theirs=self.baseline)
        reached = self.goal.reached(*(pair.values(side, self.goal.figure) for side in (self.system, self.baseline)))
        return Row(
            f"{result.load.name} {self.system}{f' {self.goal.label}' if self.goal.label else ''}",
            self.goal,
            reached,
            pair,
        )


def rows_of(results: list[Result]) -> list[Row]:
    """All targets' rows, load by load."""
    return [row for result in results for target in TARGETS if (row := target.row(result)) is not None]


def is_ceiling(load: Load) -> bool:
    return load.name.startswith(CEILING)


def is_flood(load: Load) -> bool:
    return load.name.startswith(FLOOD)


def is_stream(load: Load) -> bool:
    return isinstance(load, StreamLoad) and not is_ceiling(load)


def is_stream_of(*concurrencies: int) -> Callable[[Any], bool]:
    return lambda load: is_stream(load) and load.concurrency in concurrencies


CEILING = "ceiling "
"""Prefix of the names of loads over free tokens."""
FLOOD = f"{CEILING}2 ms "
"""Prefix for steps that come faster than a front end writes them."""
TARGETS = (
    Target(OURS_RUST, VLLM, Goal(SERVING, "lower", 0.5, label="CPU/token"), is_stream),
    Target(OURS_RUST, VLLM_RUST, Goal("tokens/s", "higher", 0.95), is_stream_of(64, 128)),
    Target(OURS_RUST, VLLM, Goal(TTFT, "lower", 0.5, label="TTFT"), is_stream_of(64)),
    Target(OURS, VLLM, Goal("tokens/s", "higher", 1.0), lambda load: not is_ceiling(load)),
    Target(OURS, VLLM, Goal(TTFT, "lower", 1.0, label="TTFT"), is_stream_of(64)),
    Target(OURS_RUST, OURS, Goal("tokens/s", "higher", 5.0), is_flood),
    Target(OURS_RUST, OURS, Goal(SERVING, "lower", label="CPU/token"), is_ceiling),
)
