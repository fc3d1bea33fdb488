"""The counts of a run as JSON, from which the documentation makes its table."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine
from bench.parity.compare import Difference, Verdict


def summarise(verdict: Verdict, num_failed: int, model: str) -> dict[str, Any]:
    """The counts of a comparison, and for each reason its differences by request shape.

    Args:
        verdict: the comparison.
        num_failed: number of checks that only the system under test fails.
        model: name of the served model.
    """
    return {
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "model": model,
        "machine": machine.describe(),
        "shapes": verdict.num_shapes,
        "equal": verdict.num_shapes - len({found.shape for found in all_differences(verdict)}),
        "open": len(verdict.open),
        "checks_failed": num_failed,
        "justified": by_reason(verdict),
    }


def failed_here(left: list[str], right: list[str]) -> int:
    """Number of checks that fail on the right alone. A random model fails some on both sides."""
    return len(set(map(_check, right)) - set(map(_check, left)))


def _check(line: str) -> tuple[str, ...]:
    """Shape and check of a line of `checks.failures`."""
    return tuple(line.split(": ", 2)[:2])


def all_differences(verdict: Verdict) -> list[Difference]:
    """Open and justified ones."""
    return [*verdict.open, *(found for found, _ in verdict.justified)]


def by_reason(verdict: Verdict) -> list[dict[str, Any]]:
    """For each reason the number of differences and the names of the shapes, in the order of the first difference."""
    reasons: dict[str, list[Difference]] = {}
    for found, justification in verdict.justified:
        reasons.setdefault(justification.reason, []).append(found)
    return [
        {"reason": reason, "differences": len(found), "shapes": sorted({each.shape for each in found})}
        for reason, found in reasons.items()
    ]


def save(summary: dict[str, Any], path: Path) -> None:
    """Write the summary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n")
