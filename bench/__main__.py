"""`python -m bench`: measures tritonlive beside vLLM's own server."""

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
"""Minimum width of the table in characters, also when the output is not a terminal."""
console = Console(width=max(MIN_WIDTH, Console().width))

SERVED_NAME = "model"
COMMON_ARGS = (
    *("--max-model-len", "2048"),  # short contexts, so that all systems fit in memory at once
    *("--max-num-batched-tokens", "2048", "--max-num-seqs", "128"),  # a server's on a CPU; an offline LLM's differ
    *("--max-logprobs", "100"),
)
"""vLLM arguments of every system, before those of `--engine-arg`."""
EFFORT = Effort(least=3, most=7, seconds=11.0)
FAILURES = (RuntimeError, LaunchError, SyncError)
"""Exceptions of a load whose system, helper process or push fails."""
QUICK_EFFORT = Effort(least=3, most=5, seconds=8.0)


@app.command()
def run(
    model: Annotated[
        list[str] | None, typer.Option(help="smollm2, tiny or a directory; may be repeated. [default: smollm2, tiny]")
    ] = None,
    ours: Annotated[str, typer.Option(help=f"The system under test: {', '.join(SYSTEMS)}.")] = "tritonlive",
    theirs: Annotated[str, typer.Option(help="The system to compare it with.")] = "vllm",
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Run only loads whose name contains this, such as push/ or chat-stream/16; may be repeated. workers/ "
            "and replicas/ run only if this option names them."
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Measurements per load and side. [default: 3 to 7, quick: 3 to 5, by the clock]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer loads and repeats, and no compilation.")] = False,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="A vLLM argument for all systems, such as --engine-arg=--enforce-eager.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The results file. The picture is written beside it.")] = Path(
        "bench/results/bench.json"
    ),
) -> None:
    """Measure tritonlive against vLLM's own server: same machine, same model, same work, same run.

    A load has two sides. Both run all the time; after a warm-up of each, they are measured in turn: A B B A A B …
    Every request generates the same number of tokens, counted by the servers' own `usage`. The tables show medians. A
    row compares the two sides pair by pair and shows the smallest and largest value. `hop/` has one side and is
    compared with a fixed figure. The exit status is 1 if a target is missed or a load fails.

    * **Noise of the harness:** `--ours vllm` measures vLLM's server against a second copy of itself. The ratios should
      be 1.00; their spread is the noise.
    * **Some rows only:** `--model smollm2 --only push/ --only teacher`
    """
    began = time.perf_counter()
    engine_args = (*COMMON_ARGS, *machine.engine_args(), *(engine_arg or ()), *(("--enforce-eager",) if quick else ()))
    effort = QUICK_EFFORT if quick else EFFORT
    effort = Effort(repeats, repeats, math.inf) if repeats else effort
    # If a system is compared with itself, the second copy needs another name.
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
    """Run the loads of one model and print the table. After a Ctrl-C, the table has the loads measured until then."""
    report = Report(Path(name).name)
    try:
        run_loads(report, labels, settings, loads, effort)
    finally:
        print_report(console, report)
    return report


def run_loads(
    report: Report, labels: tuple[str, str], settings: Settings, loads: list[PlannedLoad], effort: Effort
) -> None:
    """Run the loads and add their results to the report. After a load fails, the others still run."""

    def say(text: str) -> None:
        console.print(f"{report.model}: {text}", style="dim")

    with Systems(settings, labels, lambda label: say(f"starting {label} …")) as systems, console.status("") as status:
        for load in loads:
            try:
                sides = load.sides(systems)
                result = run_load(load, sides, effort, lambda text: status.update(f"{report.model}: {text}"))
            except FAILURES as error:
                report.failures[load.name] = str(error).replace(str(Path.home()), "~")  # the results are published
                say(f"{load.name}: FAILED: {error}")
                continue
            report.results.append(result)
            for row in result.rows:
                say(f"{row.name}: {row.goal.show(row.reached.median)} {row.goal.limit()} {row.verdict}".rstrip())
    report.memory.update(systems.memory)


if __name__ == "__main__":
    app()
