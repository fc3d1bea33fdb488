"""A picture of panels, one below the other, under the name of the machine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WIDTH_INCHES = 11


def draw_panels(
    heights: Sequence[float], inches: float, machine: dict[str, Any], path: Path, fill: Callable[[list[Any]], None]
) -> bool:
    """Draw the picture; False if matplotlib is not installed.

    heights: of each panel. inches: all of them together, with what stands around them. fill: gets matplotlib's axes.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(heights), 1, figsize=(WIDTH_INCHES, inches), height_ratios=heights, squeeze=False, layout="constrained"
    )
    fill(list(axes[:, 0]))
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
