"""A load that needs no system: for tests of what is around the measuring."""

from dataclasses import dataclass

import psutil

from bench.goals import Goal
from bench.measure import Figures, Side
from bench.systems import Systems


@dataclass(frozen=True)
class FixedSide:
    """Takes a second, it says; or fails."""

    name: str
    error: Exception | None

    def processes(self) -> list[psutil.Process]:
        return []

    def warm_up(self) -> None:
        """Warm already."""

    def prepare(self) -> None:
        """Nothing."""

    def run(self, seed: int) -> Figures:
        if self.error is not None:
            raise self.error
        return {"seconds": 1.0}


@dataclass(frozen=True)
class FixedLoad:
    """Two of them."""

    name: str
    goals: tuple[Goal, ...]
    error: Exception | None

    def sides(self, systems: Systems) -> tuple[Side, Side]:
        return FixedSide("ours", self.error), FixedSide("theirs", self.error)
