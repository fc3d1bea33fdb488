"""The outcome of a benchmark: a table on the terminal, a JSON file, a picture."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.measure import Measurement, Row

QUIET_FOREIGN_SHARE = 0.05
"""More processor time than this going to others deserves a remark."""


@dataclass(frozen=True)
class Report:
    """All rows of one model, and what they are held to."""

    model: str
    ours: str
    theirs: str
    rows: list[Row]
    targets: dict[str, float]

    def verdict(self, row: Row) -> str:
        """`ok`, `SHORT`, or nothing where there is no target."""
        target = self.targets.get(row.load.name)
        if target is None:
            return ""
        return "ok" if row.ratio(self.ours, self.theirs).median >= target else "SHORT"

    @property
    def is_ok(self) -> bool:
        """Whether no row falls short."""
        return all(self.verdict(row) != "SHORT" for row in self.rows)


def print_report(console: Console, report: Report) -> None:
    """Two tables, a row per load: tokens/s and their ratio against the target; latencies and processor time.

    Each figure is a median, the ratio with its smallest and largest value; pairs are ours / theirs.
    """
    speed = _table(f"{report.model}: {report.ours} / {report.theirs}, medians of {_repeats(report)}")
    for heading in ("tokens/s", "ratio", "low to high", "target", "", "others"):
        speed.add_column(heading, justify="right")
    times = _table("times in ms, processor time in µs")
    for heading in ("TTFT p50", "p99", "gap p50", "p99", "CPU/token"):
        times.add_column(heading, justify="right")
    for row in report.rows:
        style = "red" if report.verdict(row) == "SHORT" else None
        speed.add_row(row.load.name, *_speed_cells(report, row), style=style)
        times.add_row(row.load.name, *_time_cells(report, row))
    console.print(speed, times)
    console.print(_client_share(report), style="dim")
    if any(_foreign(row) > QUIET_FOREIGN_SHARE for row in report.rows):
        remark = (
            "[b]others[/b] is the processor time that went to neither server nor client: the machine was not quiet."
        )
        console.print(remark, style="yellow")


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("load / concurrent", no_wrap=True)
    return table


def _pair(report: Report, row: Row, value: Callable[[Measurement], float | None], digits: int, scale: float) -> str:
    values = [row.median_of(system, value) for system in (report.ours, report.theirs)]
    return " / ".join("-" if found is None else f"{found * scale:.{digits}f}" for found in values)


def _speed_cells(report: Report, row: Row) -> list[str]:
    ratio = row.ratio(report.ours, report.theirs)
    target = report.targets.get(row.load.name)
    return [
        _pair(report, row, lambda one: one.outcome.tokens_per_s, 0, 1),
        f"{ratio.median:.3f}",
        f"{ratio.low:.2f} to {ratio.high:.2f}",
        "" if target is None else f"{target:.2f}",
        report.verdict(row),
        f"{_foreign(row):.0%}",
    ]


def _time_cells(report: Report, row: Row) -> list[str]:
    return [
        _pair(report, row, lambda one: one.outcome.ttft_p50, 0, 1e3),
        _pair(report, row, lambda one: one.outcome.ttft_p99, 0, 1e3),
        _pair(report, row, lambda one: one.outcome.gap_p50, 1, 1e3),
        _pair(report, row, lambda one: one.outcome.gap_p99, 1, 1e3),
        _pair(report, row, lambda one: one.cpu_us_per_token, 0, 1),
    ]


def _repeats(report: Report) -> int:
    return len(report.rows[0].by_system[report.ours]) if report.rows else 0


def _foreign(row: Row) -> float:
    """The median over all measurements of the share that went to others."""
    return median(one.foreign_share for measurements in row.by_system.values() for one in measurements)


def _client_share(report: Report) -> str:
    outcomes = [one.outcome for row in report.rows for many in row.by_system.values() for one in many]
    shares = [outcome.client_cpu_s / outcome.wall_s for outcome in outcomes]
    return f"The client took at most {max(shares, default=0):.0%} of one core."


def as_json(report: Report) -> dict[str, Any]:
    """Everything measured, for the results file."""
    rows = []
    for row in report.rows:
        ratio = row.ratio(report.ours, report.theirs)
        rows.append(
            {
                "load": asdict(row.load) | {"name": row.load.name},
                "ratio": asdict(ratio),
                "target": report.targets.get(row.load.name),
                "verdict": report.verdict(row) or None,
                "measurements": {name: [asdict(one) for one in many] for name, many in row.by_system.items()},
            }
        )
    return {"model": report.model, "ours": report.ours, "theirs": report.theirs, "rows": rows}


def write_results(reports: list[Report], machine: dict[str, Any], settings: dict[str, Any], path: Path) -> list[Path]:
    """Write `path` (JSON) and, where matplotlib is installed, a picture beside it; the files written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "settings": settings, "models": [as_json(report) for report in reports]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    picture = path.with_suffix(".png")
    return [path, picture] if draw(reports, machine, picture) else [path]


def draw(reports: list[Report], machine: dict[str, Any], path: Path) -> bool:
    """Draw tokens/s of both systems per load, with their spread; False if matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(reports), 1, figsize=(11, 3.6 * len(reports)), squeeze=False, layout="constrained")
    for axis, report in zip(axes[:, 0], reports, strict=True):
        for offset, system in ((-0.2, report.ours), (0.2, report.theirs)):
            spreads = [row.tokens_per_s(system) for row in report.rows]
            medians = [spread.median for spread in spreads]
            errors = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
            places = [index + offset for index in range(len(spreads))]
            axis.bar(places, medians, 0.38, yerr=errors, capsize=2, label=system)
        for index, row in enumerate(report.rows):
            ratio = row.ratio(report.ours, report.theirs).median
            height = max(row.tokens_per_s(system).high for system in (report.ours, report.theirs))
            axis.annotate(f"{ratio:.2f}x", (index, height), ha="center", va="bottom", fontsize=8)
        axis.set_xticks(range(len(report.rows)), [row.load.name.replace("/", "\n") for row in report.rows], fontsize=8)
        axis.set_ylabel("completion tokens / s")
        axis.set_title(f"{report.model} (ratio {report.ours} / {report.theirs} above the bars)", fontsize=10)
        axis.margins(y=0.15)
        axis.legend(fontsize=8)
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
