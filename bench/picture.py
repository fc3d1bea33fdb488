"""Draws the results: every row's ratio with its spread and its target.

A row without another side is drawn as a ratio to its target, or to its own median if it has none.
"""

from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import Row
from bench.panels import draw_panels
from bench.stats import Spread, ratios

COLOURS = {"ok": "tab:green", "MISSED": "tab:red", "": "tab:gray"}
ROW_INCHES = 0.26


def draw(rows_by_model: dict[str, list[Row]], machine: dict[str, Any], path: Path) -> bool:
    """Draw the picture; False if matplotlib is not installed."""
    heights = [len(rows) + 3 for rows in rows_by_model.values()]

    def fill(axes: list[Any]) -> None:
        for axis, (model, rows) in zip(axes, rows_by_model.items(), strict=True):
            _draw_rows(axis, rows)
            axis.set_title(
                f"{model}: ours over theirs (arrow: the target, and on which side of it ours should be)", fontsize=9
            )

    return draw_panels(heights, ROW_INCHES * sum(heights) + 0.6, machine, path, fill)


def _draw_rows(axis: Any, rows: list[Row]) -> None:
    """Draw a line for each row, from the top, with its figures at the right."""
    axis.axvline(1.0, color="black", linewidth=0.6)
    for place, row in enumerate(rows):
        (ratio, target), colour = _ratio_and_target(row), COLOURS[row.verdict]
        errors = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
        axis.errorbar(ratio.median, place, xerr=errors, fmt="o", color=colour, markersize=5, capsize=2, linewidth=1)
        if target is not None:
            axis.plot(target, place, ">" if row.goal.better == "higher" else "<", color="black", markersize=4)
        text = f"{row.goal.show(row.reached.median)}  {row.goal.limit()}  {row.verdict}".rstrip()
        place_of_text = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8, "color": colour}
        axis.annotate(text, (1.01, place), annotation_clip=False, **place_of_text)
    names = [" / ".join(filter(None, (row.name, row.result.theirs))) for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", linewidth=0.3)
    axis.set_ylim(len(rows) - 0.5, -0.5)


def _ratio_and_target(row: Row) -> tuple[Spread, float | None]:
    """Positions of a row and of its target, as ratios."""
    target = row.goal.target
    ours, theirs = (row.result.values(side, row.goal.figure) for side in (row.result.ours, row.result.theirs))
    if row.goal.compare == "absolute":
        theirs = [target or median(ours)] * len(ours)
        return ratios(ours, theirs), None if target is None else 1.0
    if row.goal.compare == "added" and target is not None:
        target = 1 + target / median(theirs)
    return ratios(ours, theirs), target
