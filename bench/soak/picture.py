"""Draws a run: memory, descriptors, threads, shared memory and latency over time, with kills as lines."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.soak.report import Run, percentiles

PANELS = {"rss_mib": "RSS, MiB", "pss_mib": "PSS, MiB", "descriptors": "descriptors", "threads": "threads"}
LATENCY_STEP_S = 15.0


def draw(run: Run, path: Path) -> bool:
    """Draw the picture; False if matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(PANELS) + 2, 1, figsize=(11, 14), sharex=True, layout="constrained")
    for axis, (what, title) in zip(axes, PANELS.items(), strict=False):
        _draw_processes(axis, run, what)
        axis.set_ylabel(title)
    if run.samples:
        axes[0].legend(fontsize=7, ncols=3)
    axes[-2].plot(*zip(*((at / 60, mib) for at, mib in run.shared_memory_mib), strict=True))
    axes[-2].set_ylabel("shared memory, MiB")
    _draw_latency(axes[-1], run)
    axes[-1].set_xlabel("minutes")
    for axis in axes:
        axis.grid(linewidth=0.3)
        for kill in run.kills:
            axis.axvline(kill.at_s / 60, color="tab:red", linewidth=0.8, linestyle=":")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return True


def _draw_processes(axis: Any, run: Run, what: str) -> None:
    series: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for sample in run.samples:
        series[sample.role, sample.pid].append((sample.at_s / 60, getattr(sample, what)))
    colours = {role: f"C{number}" for number, role in enumerate(sorted({role for role, _ in series}))}
    named = set()
    for (role, _), points in series.items():
        axis.plot(
            *zip(*points, strict=True), color=colours[role], label=role if role not in named else None, linewidth=1
        )
        named.add(role)


def _draw_latency(axis: Any, run: Run) -> None:
    """p50 and p99 of the requests that ended within each step."""
    steps: dict[int, list[float]] = defaultdict(list)
    for answer in run.answers:
        if answer.outcome == "answered":
            steps[int((answer.began_s + answer.seconds) / LATENCY_STEP_S)].append(answer.seconds)
    places = sorted(steps)
    for number, name in enumerate(("p50", "p99")):
        axis.plot(
            [place * LATENCY_STEP_S / 60 for place in places],
            [percentiles(steps[place])[number] for place in places],
            label=name,
            linewidth=1,
        )
    axis.set_yscale("log")
    axis.set_ylabel("latency, s")
    axis.legend(fontsize=7)
