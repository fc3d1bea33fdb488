"""What a load is judged by: each goal is a row of the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.stats import Spread, differences, ratios


@dataclass(frozen=True)
class Goal:
    """One figure of a load, ours held against the other side's, or against the target alone."""

    figure: str
    """Which of the measured figures; its name ends with its unit."""
    better: Literal["higher", "lower"]
    target: float | None = None
    """What the median has to reach; None: reported only."""
    compare: Literal["ratio", "added", "absolute"] = "ratio"
    """Ours over theirs, or ours less theirs or ours alone (both in the figure's unit)."""
    label: str = ""
    """What the row's name has after the load's, where a load has several goals."""

    def reached(self, ours: Sequence[float], theirs: Sequence[float]) -> Spread:
        """The comparison, pair by pair. Raises ValueError if there are not as many of one as of the other."""
        if self.compare == "absolute":
            return Spread.of(ours)
        return (ratios if self.compare == "ratio" else differences)(ours, theirs)

    def verdict(self, reached: Spread) -> str:
        """`ok`, `SHORT`, or nothing where there is no target."""
        if self.target is None:
            return ""
        is_met = reached.median >= self.target if self.better == "higher" else reached.median <= self.target
        return "ok" if is_met else "SHORT"

    def limit(self) -> str:
        """The target in words, as in `≥ 0.99`; empty without one."""
        if self.target is None:
            return ""
        unit = f" {self.figure.rpartition(' ')[2]}" if self.compare != "ratio" else ""
        return f"{'≥' if self.better == 'higher' else '≤'} {self.show(self.target)}{unit}"

    def show(self, value: float) -> str:
        """A compared value as the table has it."""
        if self.compare == "absolute":
            return short(value)
        return f"{value:.3f}" if self.compare == "ratio" else f"{value:+.1f}"


def short(value: float) -> str:
    """Three significant digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
