"""Goals of a load. Each goal is a row of the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.stats import Spread, differences, ratios


@dataclass(frozen=True)
class Goal:
    """One figure of a load, and its target. The figure is compared with the other side's, or is absolute."""

    figure: str
    """Name of a measured figure; it ends with the unit."""
    better: Literal["higher", "lower"]
    target: float | None = None
    """Target of the median; None: the figure is only reported."""
    compare: Literal["ratio", "added", "absolute"] = "ratio"
    """ratio: ours / theirs. added: ours - theirs. absolute: ours alone. The last two have the figure's unit."""
    label: str = ""
    """Suffix of the row's name, for a load with several goals."""

    def reached(self, ours: Sequence[float], theirs: Sequence[float]) -> Spread:
        """Compare pair by pair. Raises ValueError if the two sides have different numbers of values."""
        if self.compare == "absolute":
            return Spread.of(ours)
        return (ratios if self.compare == "ratio" else differences)(ours, theirs)

    def verdict(self, reached: Spread) -> str:
        """`ok` or `MISSED`; empty without a target."""
        if self.target is None:
            return ""
        is_met = reached.median >= self.target if self.better == "higher" else reached.median <= self.target
        return "ok" if is_met else "MISSED"

    def limit(self) -> str:
        """The target as text, such as `≥ 0.99`; empty without a target."""
        if self.target is None:
            return ""
        unit = f" {self.figure.rpartition(' ')[2]}" if self.compare != "ratio" else ""
        return f"{'≥' if self.better == 'higher' else '≤'} {self.show(self.target)}{unit}"

    def show(self, value: float) -> str:
        """Format a compared value for the table."""
        if self.compare == "absolute":
            return short(value)
        return f"{value:.3f}" if self.compare == "ratio" else f"{value:+.1f}"


def short(value: float) -> str:
    """Format with three significant digits and without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
