"""`python -m bench`: tritonlive and vLLM's own server side by side."""

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import machine
from bench.loads import plan
from bench.measure import run_load
from bench.report import Report, print_report, write_results
from bench.systems import MODELS, SYSTEMS, Server, Settings, model_path

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console()

SERVED_NAME = "model"
COMMON_ARGS = ("--max-model-len", "2048")
"""What every system gets beside `--engine-arg`: short contexts, so that both fit in memory at once."""


@app.command()
def run(
    model: Annotated[
        list[str] | None, typer.Option(help="smollm2, tiny or a directory; may be repeated. [default: smollm2, tiny]")
    ] = None,
    ours: Annotated[str, typer.Option(help=f"The system judged: {', '.join(SYSTEMS)}.")] = "tritonlive",
    theirs: Annotated[str, typer.Option(help="The system it is held against.")] = "vllm",
    only: Annotated[str, typer.Option(help="Run only loads whose name contains this, as in chat-stream or /16.")] = "",
    repeats: Annotated[
        int | None, typer.Option(help="Measurements per load and system. [default: 5, quick: 3]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A third of the requests, and no compilation.")] = False,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="A vLLM argument for both systems, as in --engine-arg=--enforce-eager.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The results file; the picture goes beside it.")] = Path(
        "bench/results/bench.json"
    ),
) -> None:
    """Measure tritonlive against vLLM's own server: same machine, same model, same requests, same run.

    Both servers are up; a client in a process of its own asks one, then the other, then the other, then the one …
    after a warm-up each. Every request makes the same number of tokens, counted by the servers' own `usage`. Shown are
    medians; `ratio` is ours over theirs, pair by pair, with the smallest and largest; `gap` is the time between two
    events of a stream; `CPU` is the processor time of all the system's processes. Ends with status 1 if a target is
    missed.

    * **How good is this ruler?** `--ours vllm` measures vLLM's server against a second copy of itself: the ratios
      should be 1.00, and their spread is the harness's own noise.
    * **One case:** `--model tiny --only chat-stream/64 --repeats 9`
    """
    engine_args = (*COMMON_ARGS, *(engine_arg or ()), *(("--enforce-eager",) if quick else ()))
    repeats = repeats or (3 if quick else 5)
    reports = [
        measure_model(name, (ours, theirs), Settings(model_path(name), engine_args, SERVED_NAME), only, repeats, quick)
        for name in model or list(MODELS)
    ]
    settings = {
        "engine_args": engine_args,
        "repeats": repeats,
        "quick": quick,
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
    }
    for path in write_results(reports, machine.describe(), settings, out):
        console.print(f"wrote {path}")
    raise typer.Exit(0 if all(report.is_ok for report in reports) else 1)


def measure_model(
    name: str, systems: tuple[str, str], settings: Settings, only: str, repeats: int, quick: bool
) -> Report:
    """Start both systems, run every load of the model, print the table."""
    planned = plan(name, quick=quick)
    loads = [load for load in planned.loads if only in load.name]
    if not loads:
        raise typer.BadParameter(f"no load of {name} has a name with {only!r}", param_hint="--only")
    ours, theirs = systems
    # A system against itself: the second copy needs a name of its own.
    labels = (ours, theirs if theirs != ours else f"{theirs} again")
    rows = []
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for label, system in zip(labels, systems, strict=True):
            console.print(f"{name}: starting {label} …", style="dim")
            servers[label] = stack.enter_context(SYSTEMS[system](settings))
        with console.status("") as status:
            for load in loads:
                rows.append(
                    run_load(load, servers, SERVED_NAME, repeats, lambda text: status.update(f"{name}: {text}"))
                )
                ratio = rows[-1].ratio(*labels)
                console.print(f"{name}: {load.name}: {ratio.median:.3f}", style="dim")
    report = Report(Path(name).name, *labels, rows, planned.targets)
    print_report(console, report)
    return report


if __name__ == "__main__":
    app()
