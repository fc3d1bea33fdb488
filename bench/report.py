"""The outcome of a benchmark: tables on the terminal, a JSON file, a picture."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.goals import short
from bench.measure import Result, Row
from bench.memory import Memory
from bench.picture import draw

QUIET_FOREIGN_SHARE = 0.05
"""Share of processor time used by other work from which the report shows a remark."""
CLIENT_SHARE = "client share of a core"
TIMES = {
    "TTFT p50": "ttft p50 ms",
    "TTFT p99": "ttft p99 ms",
    "gap p50": "gap p50 ms",
    "gap p99": "gap p99 ms",
    "latency p50": "latency p50 ms",
    "CPU/token": "CPU per token µs",
}
"""Columns of the second table, and their figures."""
MISSED = "MISSED"


@dataclass(frozen=True)
class Report:
    """Everything measured with one model."""

    model: str
    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Error messages by the name of the failed load."""
    memory: dict[str, Memory] = field(default_factory=dict)
    """Memory by system, after its loads."""

    @property
    def rows(self) -> list[Row]:
        return [row for result in self.results for row in result.rows]

    @property
    def is_ok(self) -> bool:
        """Whether all loads were measured and no row misses its target."""
        return not self.failures and all(row.verdict != MISSED for row in self.rows)


def print_report(console: Console, report: Report) -> None:
    """Print two tables: goals with their targets, and latencies and processor time of each load that has them.

    Each figure is a median. The reached value has its smallest and largest value, too. Pairs are ours / theirs; a
    single figure is ours, of a load without another side.
    """
    goals = _table(f"{report.model}: medians, ours / theirs")
    for heading in ("unit", "ours / theirs", "reached", "low to high", "target", "", "runs", "others", "beside"):
        goals.add_column(heading, justify="left" if heading == "beside" else "right", no_wrap=True)
    for row in report.rows:
        goals.add_row(row.name, *_goal_cells(row), style="red" if row.verdict == MISSED else None)
    for name in report.failures:
        goals.add_row(name, "", "", "FAILED", style="red")
    console.print(goals)
    timed = [result for result in report.results if any(result.values(result.ours, TIMES[name]) for name in TIMES)]
    if timed:
        times = _table("times in ms, processor time in µs")
        for heading in TIMES:
            times.add_column(heading, justify="right", no_wrap=True)
        for result in timed:
            times.add_row(result.load.name, *_pairs(result, TIMES.values()))
        console.print(times)
        shares = [share for one in timed for side in one.sides for share in one.values(side, CLIENT_SHARE)]
        console.print(f"The client took at most {max(shares, default=0):.0%} of one core.", style="dim")
    if report.memory:
        held = [f"{name} {each.frontend_pss_mib:.0f} / {each.pss_mib:.0f}" for name, each in report.memory.items()]
        console.print(f"Memory in MiB (PSS), the front end / all processes: {', '.join(held)}.", style="dim")
    if any(result.foreign_share > QUIET_FOREIGN_SHARE for result in report.results):
        remark = "[b]others[/b] is the processor time that went to neither side: the machine was not quiet."
        console.print(remark, style="yellow")


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("load", no_wrap=True)
    return table


def _goal_cells(row: Row) -> list[str]:
    goal, result, reached = row.goal, row.result, row.reached
    (pair,) = _pairs(result, [goal.figure])
    low_to_high = f"{goal.show(reached.low)} to {goal.show(reached.high)}"
    return [
        goal.figure,
        pair,
        goal.show(reached.median),
        low_to_high,
        goal.limit(),
        row.verdict,
        str(result.repeats),
        f"{result.foreign_share:.0%}",
        result.theirs,
    ]


def _pairs(result: Result, figures: Iterable[str]) -> list[str]:
    """The median of each figure for all sides; a dash for a side without it."""
    return [
        " / ".join(short(spread.median) if spread else "-" for spread in spreads)
        for figure in figures
        for spreads in [[result.spread(side, figure) for side in result.sides]]
    ]


def as_json(report: Report) -> dict[str, Any]:
    """All measurements, for the results file."""
    return {
        "model": report.model,
        "rows": [row_json(row) for row in report.rows],
        "failures": report.failures,
        "systems": {name: asdict(memory) for name, memory in report.memory.items()},
        "loads": [
            {
                "name": result.load.name,
                "load": asdict(result.load),
                "ours": result.ours,
                "theirs": result.theirs,
                "measurements": {name: [asdict(one) for one in many] for name, many in result.measurements.items()},
            }
            for result in report.results
        ],
    }


def row_json(row: Row) -> dict[str, Any]:
    sides = {side: asdict(spread) for side in row.result.sides if (spread := row.result.spread(side, row.goal.figure))}
    return {
        "name": row.name,
        **asdict(row.goal),
        "sides": sides,
        "reached": asdict(row.reached),
        "verdict": row.verdict or None,
        "repeats": row.result.repeats,
    }


def write_results(reports: list[Report], machine: dict[str, Any], settings: dict[str, Any], path: Path) -> list[Path]:
    """Write `path` (JSON) and, if matplotlib is installed, a picture beside it; returns the files written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "settings": settings, "models": [as_json(report) for report in reports]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    picture = path.with_suffix(".png")
    rows_by_model = {report.model: report.rows for report in reports if report.rows}
    drawn = bool(rows_by_model) and draw(rows_by_model, machine, picture)
    return [path, picture] if drawn else [path]
