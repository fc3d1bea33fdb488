"""The load that measures the path through Triton alone."""

from dataclasses import dataclass

import psutil

from bench.goals import Goal
from bench.hop.server import Hop
from bench.measure import Figures, Side
from bench.systems import Systems

WARM_UP_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class HopLoad:
    """Concurrent generations whose tokens are not computed. The figure is absolute: there is no other side."""

    goals: tuple[Goal, ...] = ()
    concurrency: int
    max_tokens: int

    @property
    def name(self) -> str:
        return f"hop/{self.concurrency}"

    def sides(self, systems: Systems) -> tuple[Side]:
        return (HopSide(systems.hop, self),)


@dataclass(frozen=True)
class HopSide:
    """The path from the model's engine core to the front end's client."""

    hop: Hop
    load: HopLoad
    name: str = "hop"

    def processes(self) -> list[psutil.Process]:
        """Processes of Triton and of the client, which is part of what is measured."""
        return self.hop.processes()

    def warm_up(self) -> None:
        self.hop.generate(self.load.concurrency, WARM_UP_TOKENS)

    def prepare(self) -> None:
        """No preparation."""

    def run(self, seed: int) -> Figures:
        return self.hop.generate(self.load.concurrency, self.load.max_tokens)
