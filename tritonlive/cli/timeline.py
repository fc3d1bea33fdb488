"""Shows the last updates of a replica as a table."""

import time
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from tritonlive.wire.outcomes import Outcome

OUTCOME_STYLES = {
    Outcome.COMMITTED: "green",
    Outcome.UNCHANGED: "cyan",
    Outcome.RUNNING: "yellow",
    Outcome.FAILED: "red",
    Outcome.ABORTED: "red",
}
MIN_WIDTH = 140
"""Columns of the console that the table needs; a narrower one would cut off figures, and a terminal wraps the lines."""
SECONDS = ("stage_s", "pause_s", "drain_s", "load_s", "flush_s", "total_s")


def timeline_table(answer: Mapping[str, Any]) -> Table:
    """A table of the answer of the control operation `timeline`, one line for each update, the newest last."""
    table = Table(title=Text(headline(answer)), title_justify="left", box=None, pad_edge=False)
    for name in ("when", "what", "version", "outcome", "in flight", "tensors", "MB"):
        table.add_column(name)
    for name in SECONDS:
        table.add_column(name.replace("_s", " s"), justify="right")
    table.add_column("by", overflow="fold")
    for update in answer["updates"]:
        outcome = update["outcome"]
        reason = f": {update['reason']}" if update["reason"] else ""
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(update["started_at"])),
            update["kind"],
            Text(update["weight_version"] or "-"),  # not markup: a version may be named `[red]`
            Text.assemble((outcome, OUTCOME_STYLES.get(outcome, "")), reason),
            update["in_flight"] or "-",
            str(update["num_tensors"]),
            f"{update['num_bytes'] / 1e6:.1f}",
            *(f"{update[name]:.3f}" for name in SECONDS),
            Text(update["holder"] or "-"),
        )
    return table


def headline(answer: Mapping[str, Any]) -> str:
    """The current version, the connected trainer, and how stale the running requests are."""
    version, lease = answer["weight_version"], answer["lease"]
    in_flight: Mapping[str, int] = answer["in_flight"]
    stale = {began: count for began, count in in_flight.items() if began != version}
    parts = [f"{answer['state']} {version}"]
    parts.append(f"trainer {lease['holder']}, lease {lease['left_s']:.0f} s" if lease else "no trainer connected")
    parts.append(f"{sum(in_flight.values())} requests running")
    if stale:
        parts.append(
            "begun with older weights: " + ", ".join(f"{count} with {began}" for began, count in stale.items())
        )
    return " · ".join(parts)
