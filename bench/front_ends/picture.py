"""Draws the processor time of a token by kind of process, with throughput and time to the first token."""

from pathlib import Path
from typing import Any

from bench.panels import draw_panels
from bench.process_kinds import ENGINE, OTHER, SERVING

COLOURS = dict(zip(SERVING, ("tab:blue", "tab:orange", "tab:red", "tab:green", "tab:purple"), strict=True))
BAR_INCHES = 0.27


def draw(content: dict[str, Any], path: Path) -> bool:
    """Draw the picture of a results file; False if there is nothing to draw or matplotlib is not installed."""
    loads = content["loads"]
    if not loads:
        return False
    heights = [len(load["systems"]) + 1.5 for load in loads]

    def fill(axes: list[Any]) -> None:
        for axis, load in zip(axes, loads, strict=True):
            _draw_load(axis, load)
        axes[0].legend(fontsize=7, ncols=len(SERVING), loc="lower left", bbox_to_anchor=(0, 1.15))
        axes[-1].set_xlabel(f"processor time per token in µs, without the {ENGINE} and {OTHER}", fontsize=8)

    return draw_panels(heights, BAR_INCHES * sum(heights) + 0.9, content["machine"], path, fill)


def _draw_load(axis: Any, load: dict[str, Any]) -> None:
    """A bar for each system, from the top, with its figures at the right."""
    systems = load["systems"]
    for place, values in enumerate(systems.values()):
        left = 0.0
        for kind in SERVING:
            cost = values["CPU µs per token"].get(kind, 0.0)
            axis.barh(place, cost, left=left, color=COLOURS[kind], label=None if place else kind)
            left += cost
        text = f"{values['serving µs per token']:.0f} µs, {values['tokens/s']:.0f} tokens/s"
        if (ttft := values.get("TTFT mean")) is not None:
            text += f", TTFT {ttft:.0f} ms"
        axis.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axis.set_title(load["name"], fontsize=9, loc="left")
    axis.set_yticks(range(len(systems)), list(systems), fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", linewidth=0.3)
    axis.set_ylim(len(systems) - 0.5, -0.5)
