"""Prints the result of a parity run."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.parity import metrics
from bench.parity.compare import MISSING, Difference, Verdict
from bench.parity.metrics import Growth, Probe, differences

VALUE_WIDTH = 400
"""Maximum number of characters shown of a value."""


def print_verdict(
    console: Console, verdict: Verdict, failed: dict[str, list[str]], left: str, right: str, num_failed_here: int
) -> None:
    """Print every difference with both values, every failed check, and a summary line.

    Args:
        console: console to print to.
        verdict: the comparison.
        failed: failed checks by recording.
        left: name of the reference recording.
        right: name of the other recording.
        num_failed_here: number of checks that only the other one fails.
    """
    for difference in verdict.open:
        _print_difference(console, difference, left, right)
    for difference, justification in verdict.justified:
        console.print(
            Text(f"{difference.shape} {difference.path}: justified: {justification.reason}", style="dim"),
            soft_wrap=True,
        )
    for stale in verdict.stale:
        console.print(
            Text(f"{stale.shape} {stale.path}: the justification covers nothing, delete it", style="red"),
            soft_wrap=True,
        )
    for name, lines in failed.items():
        for line in lines:
            console.print(Text(f"{name}: check failed: {line}", style="red"), soft_wrap=True)
    differing = len({difference.shape for difference in verdict.open})
    num_failed = sum(map(len, failed.values()))
    is_ok = verdict.is_ok and not num_failed_here
    summary = (
        f"{verdict.num_shapes} request shapes, {verdict.num_shapes - differing} without an unjustified difference; "
        f"{len(verdict.open)} differences open, {len(verdict.justified)} justified, "
        f"{num_failed} checks failed, {num_failed_here} of them only here"
    )
    console.print(Text(summary, style="bold green" if is_ok else "bold red"), soft_wrap=True)


def print_metrics(
    console: Console, probes: list[Probe], theirs: dict[str, Growth], ours: dict[str, Growth]
) -> list[str]:
    """Print what each probe added to each series at both servers, and every difference; returns the differences."""
    names = {name for growth in (theirs, ours) for each in growth.values() for name in each.samples}
    table = Table("series (one value: equal; else vLLM / tritonlive)", *(probe.name for probe in probes))
    for name in sorted(name for name in names if "_bucket" not in name):
        cells = (metrics.cell(name, theirs[probe.name], ours[probe.name]) for probe in probes)
        table.add_row(name.removeprefix("vllm:"), *cells)
    console.print(table)
    lines = [line for probe in probes for line in differences(probe, theirs[probe.name], ours[probe.name])]
    for line in lines:
        console.print(Text(line, style="red"), soft_wrap=True)
    num = sum(len(each.samples) for each in ours.values())
    console.print(Text(f"{num} series grew, {len(lines)} otherwise than at vLLM's own server"), soft_wrap=True)
    return lines


def _print_difference(console: Console, difference: Difference, left: str, right: str) -> None:
    console.print(Text(f"{difference.shape} {difference.path}", style="bold"), soft_wrap=True)
    width = max(len(left), len(right))
    for name, value in ((left, difference.left), (right, difference.right)):
        console.print(Text(f"    {name:<{width}}  {_shown(value)}"), soft_wrap=True)


def _shown(value: Any) -> str:
    text = value if value == MISSING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_WIDTH else f"{text[:VALUE_WIDTH]}… ({len(text)} characters)"
