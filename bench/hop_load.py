"""The load that has nothing to do but the way through Triton."""

from dataclasses import dataclass

import psutil

from bench.goals import Goal
from bench.hop.server import Hop
from bench.measure import Figures, Side
from bench.systems import Systems

WARM_UP_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class HopLoad:
    """Generations at once, whose tokens cost nothing to make; an absolute figure, with no other side."""

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
    """From the model's engine core to the front end's."""

    hop: Hop
    load: HopLoad
    name: str = "hop"

    def processes(self) -> list[psutil.Process]:
        """The client's, too: it is the other end."""
        return self.hop.processes()

    def warm_up(self) -> None:
        self.hop.generate(self.load.concurrency, WARM_UP_TOKENS)

    def prepare(self) -> None:
        """Nothing."""

    def run(self, seed: int) -> Figures:
        return self.hop.generate(self.load.concurrency, self.load.max_tokens)
