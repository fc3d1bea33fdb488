"""The outcome: figures of every system, targets, processor time by kind of process; on the terminal and in a file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.front_ends.picture import draw
from bench.front_ends.targets import TTFT, rows_of
from bench.goals import short
from bench.measure import Measurement, Result, Row
from bench.memory import Memory
from bench.process_kinds import KINDS, SERVING
from bench.report import CLIENT_SHARE, MISSED, row_json

FIGURES = {
    "tokens/s": "tokens/s",
    "TTFT mean": TTFT,
    "TTFT p50": "ttft p50 ms",
    "events/token": "events/token",
    "client": CLIENT_SHARE,
}
"""Columns, and their figures."""


@dataclass
class Report:
    """All that was measured."""

    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Error messages by the name of the failed load or system."""
    memory: dict[str, Memory] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        return rows_of(self.results)


def cost_by_kind(measurements: list[Measurement], divisor: float) -> dict[str, float]:
    """Median processor time of each kind of process, in µs, divided by a number of tokens or requests."""
    kinds = {kind for one in measurements for kind in one.cpu_by_kind_s}
    return {
        kind: median(one.cpu_by_kind_s.get(kind, 0.0) for one in measurements) / divisor * 1e6
        for kind in KINDS
        if kind in kinds
    }


def summary(result: Result, system: str) -> dict[str, Any]:
    """Medians of one system."""
    measurements = result.measurements[system]
    tokens = measurements[0].figures["completion tokens"]
    requests = float(getattr(result.load, "num_requests"))  # noqa: B009 - the protocol of loads does not have it
    per_token, per_request = (cost_by_kind(measurements, divisor) for divisor in (tokens, requests))
    serving = sum(per_token.get(kind, 0.0) for kind in SERVING)
    values = {name: spread.median for name, figure in FIGURES.items() if (spread := result.spread(system, figure))}
    return values | {
        "requests/s": values["tokens/s"] * requests / tokens,
        "CPU µs per token": per_token,
        "CPU µs per request": per_request,
        "serving µs per token": serving,
        "serving µs per request": serving * tokens / requests,
        "tokens/s per core": 1e6 / serving if serving else None,
        "others": median(one.foreign_share for one in measurements),
        "runs": len(measurements),
    }


def print_report(console: Console, report: Report) -> None:
    """Print a table of figures, and one of targets."""
    kinds = [kind for kind in KINDS if any(_has_kind(result, kind) for result in report.results)]
    table = _table("medians; TTFT in ms; processor time in µs per token by kind of process")
    headings = ("system", *FIGURES, *kinds, "serving", "per request", "tokens/s/core", "others")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "system" else "right", no_wrap=True)
    for result in report.results:
        for place, system in enumerate(result.sides):
            table.add_row("" if place else result.load.name, system, *_cells(summary(result, system), kinds))
    console.print(table)
    targets = _table("targets: ratios of pairs of runs")
    for heading in ("figure", "beside", "reached", "low to high", "target", "", "runs"):
        targets.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        goal, reached = row.goal, row.reached
        low_to_high = f"{goal.show(reached.low)} to {goal.show(reached.high)}"
        cells = (goal.figure, row.result.theirs, goal.show(reached.median), low_to_high, goal.limit(), row.verdict)
        targets.add_row(row.name, *cells, str(row.result.repeats), style="red" if row.verdict == MISSED else None)
    for name, message in report.failures.items():
        targets.add_row(name, message.partition("\n")[0][:60], "", "FAILED", style="red")
    console.print(targets)


def _has_kind(result: Result, kind: str) -> bool:
    return any(kind in one.cpu_by_kind_s for many in result.measurements.values() for one in many)


def _cells(values: dict[str, Any], kinds: list[str]) -> list[str]:
    costs = values["CPU µs per token"]
    figures = [short(values[name]) if name in values else "-" for name in FIGURES]
    by_kind = [short(costs[kind]) if kind in costs else "-" for kind in kinds]
    per_core = values["tokens/s per core"]
    return [
        *figures,
        *by_kind,
        short(values["serving µs per token"]),
        short(values["serving µs per request"]),
        short(per_core) if per_core else "-",
        f"{values['others']:.0%}",
    ]


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("load", no_wrap=True)
    return table


def as_json(report: Report) -> dict[str, Any]:
    """Medians, targets and all measurements."""
    return {
        "targets": [row_json(row) | {"system": row.result.ours, "baseline": row.result.theirs} for row in report.rows],
        "failures": report.failures,
        "systems": {name: asdict(memory) for name, memory in report.memory.items()},
        "loads": [
            {
                "name": result.load.name,
                "load": asdict(result.load),
                "systems": {system: summary(result, system) for system in result.sides},
                "measurements": {name: [asdict(one) for one in many] for name, many in result.measurements.items()},
            }
            for result in report.results
        ],
    }


def write(report: Report, machine: dict[str, Any], settings: dict[str, Any], path: Path) -> list[Path]:
    """Write `path` (JSON) and, if matplotlib is installed, a picture beside it; returns the files written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "settings": settings, **as_json(report)}
    path.write_text(json.dumps(content, indent=1) + "\n")
    picture = path.with_suffix(".png")
    return [path, picture] if draw(content, picture) else [path]
