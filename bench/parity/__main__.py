"""`python -m bench.parity`: sends the same requests to vLLM's own server and to tritonlive; prints differences."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.parity import metrics as serving_metrics
from bench.parity import recording as recordings
from bench.parity import summary
from bench.parity.checks import failures
from bench.parity.compare import compare, load_justifications
from bench.parity.comparison import Comparison, comparison
from bench.parity.profiles import COMMON
from bench.parity.recording import Recording
from bench.parity.report import print_metrics, print_verdict
from bench.parity.shape import MODEL, Shape
from bench.systems import SYSTEMS, Settings, model_path

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
MIN_WIDTH = 190
"""Minimum width of a table in characters, also when the output is not a terminal."""
console = Console(width=max(MIN_WIDTH, Console().width))

Only = Annotated[str, typer.Option(help="Send only the shapes whose name contains this.")]
Model = Annotated[str, typer.Option(help="Model to serve: smollm2, tiny, or a directory.")]
Rust = Annotated[bool, typer.Option(help="Compare the Rust front ends: vLLM's own, and the one over Triton.")]
Counts = Annotated[Path | None, typer.Option(help="Write the counts to this file, for the documentation.")]
OutDir = Annotated[Path, typer.Option(help="Folder of the recordings.")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    model: Model = "smollm2",
    only: Only = "",
    rust: Rust = False,
    out: OutDir = Path("bench/results/parity"),
    left: Annotated[str, typer.Option(help="The reference system; by default vLLM's own server.")] = "",
    right: Annotated[str, typer.Option(help="The system under test; by default tritonlive.")] = "",
    counts: Counts = None,
) -> None:
    """Record both systems in turn, compare, and print every difference.

    The exit status is 1 if a difference is not in `bench/parity/justified.toml` (with --rust: `justified-rust.toml`),
    an entry there matches no difference, or an answer fails one of its checks and the reference's does not. Recordings
    stay in `--out`, one per system, so that one side can be recorded again alone:

    * `python -m bench.parity record --system tritonlive --out bench/results/parity/tritonlive.json`
    * `python -m bench.parity compare bench/results/parity/vllm.json bench/results/parity/tritonlive.json`
    * `python -m bench.parity --right vllm` compares two runs of vLLM's server, which shows the harness's own noise.
    """
    if context.invoked_subcommand is not None:
        return
    chosen = comparison(rust)
    shapes = selected(only, chosen)
    left, right = left or chosen.left, right or chosen.right
    # If both sides are the same system, the files need different names.
    paths = [
        out / f"{system}{suffix}.json" for system, suffix in ((left, ""), (right, "-again" if left == right else ""))
    ]
    for system, path in zip((left, right), paths, strict=True):
        record_system(system, model_path(model), shapes, chosen, path)
    raise typer.Exit(judge(*paths, shapes, chosen, counts, model))


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="The recording to write.")],
    system: Annotated[str, typer.Option(help=f"System to start: {', '.join(SYSTEMS)}.")] = "tritonlive",
    url: Annotated[str | None, typer.Option(help="Record this running server instead of starting one.")] = None,
    profile: Annotated[str, typer.Option(help="With --url: the profile the server was started with.")] = "hermes",
    model: Model = "smollm2",
    only: Only = "",
    rust: Rust = False,
) -> None:
    """Record one system's answers."""
    chosen = comparison(rust)
    shapes = selected(only, chosen)
    if url is None:
        record_system(system, model_path(model), shapes, chosen, out)
        return
    shapes = [shape for shape in shapes if shape.profile == profile]
    with progress(url, shapes) as advance:
        recordings.save(recordings.record(url, shapes, advance), out)


@app.command("compare")
def compare_files(
    left: Annotated[Path, typer.Argument(help="Recording of vLLM's own server.")],
    right: Annotated[Path, typer.Argument(help="Recording of the system under test.")],
    only: Only = "",
    rust: Rust = False,
    counts: Counts = None,
    model: Model = "smollm2",
) -> None:
    """Compare two recordings."""
    chosen = comparison(rust)
    raise typer.Exit(judge(left, right, selected(only, chosen), chosen, counts, model))


@app.command("metrics")
def compare_metrics(model: Model = "tiny", rust: Rust = False) -> None:
    """Compare what the same requests add to vLLM's metrics at both servers.

    The exit status is 1 if a count differs, or a sum of seconds is negative or longer than the requests took.
    """
    probes, systems = serving_metrics.probes(), comparison(rust)
    grown = []
    for system in (systems.left, systems.right):
        console.print(f"{system}: starting …", style="dim")
        with SYSTEMS[system](Settings(model_path(model), COMMON, served_name=MODEL)) as server:
            grown.append(asyncio.run(serving_metrics.measure(server.url, probes)))
    lines = print_metrics(console, probes, *grown)
    raise typer.Exit(1 if lines else 0)


def selected(only: str, chosen: Comparison) -> list[Shape]:
    """The comparison's shapes whose name contains `only`."""
    shapes = [shape for shape in chosen.shapes() if only in shape.name]
    if not shapes:
        raise typer.BadParameter(f"no shape's name contains {only!r}")
    return shapes


def judge(left: Path, right: Path, shapes: list[Shape], chosen: Comparison, counts: Path | None, model: str) -> int:
    """Print the comparison of two recordings, and write its counts; returns the exit status."""
    one, other = recordings.load(left), recordings.load(right)
    shapes = [shape for shape in shapes if shape.name in one or shape.name in other]
    verdict = compare(one, other, shapes, load_justifications(chosen.justified))
    wrong = {path.stem: failures(recording, shapes) for path, recording in ((left, one), (right, other))}
    num_failed_here = summary.failed_here(wrong[left.stem], wrong[right.stem])
    print_verdict(console, verdict, wrong, left.stem, right.stem, num_failed_here)
    if counts is not None:
        summary.save(summary.summarise(verdict, num_failed_here, model), counts)
    return 0 if verdict.is_ok and not num_failed_here else 1


def record_system(system: str, model: Path, shapes: list[Shape], comparison: Comparison, path: Path) -> None:
    """Start the system once per profile that the shapes need, and record it; saves after each."""
    recording: Recording = {}
    for profile in comparison.profiles:
        chosen = [shape for shape in shapes if shape.profile == profile]
        if not chosen:
            continue
        settings = Settings(model, comparison.server_args(profile), served_name=MODEL)
        console.print(f"{system}: starting the {profile} server …", style="dim")
        with SYSTEMS[system](settings) as server, progress(f"{system}, {profile}", chosen) as advance:
            recording |= recordings.record(server.url, chosen, advance)
        recordings.save(recording, path)


@contextmanager
def progress(title: str, shapes: list[Shape]) -> Iterator[recordings.OnAnswer]:
    """Show a progress bar over the shapes; yields the function to call after each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=len(shapes))
        yield lambda shape: bar.advance(task)


if __name__ == "__main__":
    app()
