"""`python -m bench`: tritonlive and vLLM's own server side by side."""

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import machine
from bench.measure import Effort, run_load
from bench.plan import PlannedLoad, extras, plan
from bench.report import Report, print_report, write_results
from bench.systems import AGAIN, MODELS, SYSTEMS, Settings, Systems, model_path
from sync import SyncError
from tritonlive.launch.errors import LaunchError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
MIN_WIDTH = 140
"""Of the table, also where the output is not a terminal."""
console = Console(width=max(MIN_WIDTH, Console().width))

SERVED_NAME = "model"
COMMON_ARGS = (
    *("--max-model-len", "2048"),  # short contexts, so that all systems fit in memory at once
    *("--max-num-batched-tokens", "2048", "--max-num-seqs", "128"),  # a server's on a CPU; an offline LLM has others
    *("--max-logprobs", "100"),
)
"""What every system gets beside `--engine-arg`."""
EFFORT = Effort(least=3, most=9, seconds=15.0)
FAILURES = (RuntimeError, LaunchError, SyncError)
"""What a load may end with when a system, a helper or a push fails."""
QUICK_EFFORT = Effort(least=3, most=5, seconds=8.0)


@app.command()
def run(
    model: Annotated[
        list[str] | None, typer.Option(help="smollm2, tiny or a directory; may be repeated. [default: smollm2, tiny]")
    ] = None,
    ours: Annotated[str, typer.Option(help=f"The system judged: {', '.join(SYSTEMS)}.")] = "tritonlive",
    theirs: Annotated[str, typer.Option(help="The system it is held against.")] = "vllm",
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Run only loads whose name contains this, as in push/ or chat-stream/16; may be repeated. workers/ "
            "and replicas/ run only when they are named."
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Measurements per load and side. [default: 3 to 9, quick: 3 to 5, by the clock]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer loads and repeats, and no compilation.")] = False,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="A vLLM argument for all systems, as in --engine-arg=--enforce-eager.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The results file; the picture goes beside it.")] = Path(
        "bench/results/bench.json"
    ),
) -> None:
    """Measure tritonlive against vLLM's own server: same machine, same model, same work, same run.

    A load has two sides, which are all up and take turns: one, then the other, then the other, then the one … after a
    warm-up each. Every request makes the same number of tokens, counted by the servers' own `usage`. Shown are
    medians; a row compares ours with the other side pair by pair, with the smallest and largest value. `hop/` has one
    side, held against a fixed figure. Ends with status 1 if a target is missed or a load fails.

    * **How good is this ruler?** `--ours vllm` measures vLLM's server against a second copy of itself: the ratios
      should be 1.00, and their spread is the harness's own noise.
    * **Some rows:** `--model smollm2 --only push/ --only teacher`
    """
    began = time.perf_counter()
    engine_args = (*COMMON_ARGS, *machine.engine_args(), *(engine_arg or ()), *(("--enforce-eager",) if quick else ()))
    effort = QUICK_EFFORT if quick else EFFORT
    effort = Effort(repeats, repeats, math.inf) if repeats else effort
    # A system against itself: the second copy needs a name of its own.
    labels = (ours, theirs if theirs != ours else f"{theirs}{AGAIN}")
    reports = []
    for name in model or list(MODELS):
        known = plan(name, quick=quick) + (extras() if only else [])
        loads = [load for load in known if any(part in load.name for part in only or [""])]
        if loads:
            settings = Settings(model_path(name), engine_args, SERVED_NAME)
            reports.append(measure_model(name, labels, settings, loads, effort))
    if not reports:
        raise typer.BadParameter(f"no load has a name with {' or '.join(only or [])}", param_hint="--only")
    elapsed_s = time.perf_counter() - began
    about = {
        "engine_args": engine_args,
        "quick": quick,
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "elapsed_s": round(elapsed_s),
    }
    for path in write_results(reports, machine.describe(), about, out):
        console.print(f"wrote {path}")
    console.print(f"took {elapsed_s / 60:.1f} minutes")
    raise typer.Exit(0 if all(report.is_ok for report in reports) else 1)


def measure_model(
    name: str, labels: tuple[str, str], settings: Settings, loads: list[PlannedLoad], effort: Effort
) -> Report:
    """Run the loads of one model and print the table, after a Ctrl-C of what was measured before it."""
    report = Report(Path(name).name)
    try:
        run_loads(report, labels, settings, loads, effort)
    finally:
        print_report(console, report)
    return report


def run_loads(
    report: Report, labels: tuple[str, str], settings: Settings, loads: list[PlannedLoad], effort: Effort
) -> None:
    """Run the loads for a report, starting what they need. One that fails ends no other."""

    def say(text: str) -> None:
        console.print(f"{report.model}: {text}", style="dim")

    with Systems(settings, labels, lambda label: say(f"starting {label} …")) as systems, console.status("") as status:
        for load in loads:
            try:
                sides = load.sides(systems)
                result = run_load(load, sides, effort, lambda text: status.update(f"{report.model}: {text}"))
            except FAILURES as error:
                report.failures[load.name] = str(error)
                say(f"{load.name}: FAILED: {error}")
                continue
            report.results.append(result)
            for row in result.rows:
                say(f"{row.name}: {row.goal.show(row.reached.median)} {row.goal.limit()} {row.verdict}".rstrip())
    report.memory.update(systems.memory)


if __name__ == "__main__":
    app()
