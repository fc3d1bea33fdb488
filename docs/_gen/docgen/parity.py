"""The differences from vLLM's own servers that stay, with their reasons."""

import json
import tomllib
from pathlib import Path

from docgen import source, tables

HERE = source.ROOT / "bench" / "parity"
JUSTIFIED = HERE / "justified.toml"
JUSTIFIED_RUST = HERE / "justified-rust.toml"
RUST_COUNTS = source.ROOT / "bench" / "results" / "parity-rust.json"


def justified_table() -> str:
    rows = [(reason, ", ".join(map(tables.code, names))) for reason, names in shapes_by_reason(JUSTIFIED).items()]
    return tables.table(("difference", "request shapes"), rows)


def rust_table() -> str:
    """The counts of the committed run with --rust. Raises KeyError for a reason that the run did not meet."""
    counts = json.loads(RUST_COUNTS.read_text())
    met = {row["reason"]: row for row in counts["justified"]}
    rows = [
        (reason, str(met[reason]["differences"]), str(len(met[reason]["shapes"])), ", ".join(map(tables.code, names)))
        for reason, names in shapes_by_reason(JUSTIFIED_RUST).items()
    ]
    num_justified = sum(row["differences"] for row in counts["justified"])
    machine, day = counts["machine"], counts["when"][:10]
    note = (
        f"{counts['shapes']} request shapes, {counts['equal']} with the same answer; {counts['open']} differences "
        f"open, {num_justified} justified, {counts['checks_failed']} checks of answers failed here "
        f"alone (commit `{machine['commit']}`, {day}, model {counts['model']}, {machine['cores']} cores)."
    )
    headings = ("difference", "fields", "requests", "request shapes")
    return f"{note}\n\n{tables.table(headings, rows)}"


def shapes_by_reason(path: Path) -> dict[str, list[str]]:
    """The patterns of request shapes by reason, each once."""
    shapes: dict[str, list[str]] = {}
    for entry in tomllib.loads(path.read_text()).get("justified", []):
        names = shapes.setdefault(entry["reason"], [])
        if entry["shape"] not in names:
            names.append(entry["shape"])
    return shapes
