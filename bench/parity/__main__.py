"""`python -m bench.parity`: sends the same requests to vLLM's own server and to tritonlive; prints differences."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.parity import recording as recordings
from bench.parity.checks import failures
from bench.parity.compare import compare, load_justifications
from bench.parity.profiles import PROFILES, server_args
from bench.parity.recording import Recording
from bench.parity.report import print_verdict
from bench.parity.shape import MODEL, Shape
from bench.parity.shapes import all_shapes
from bench.systems import SYSTEMS, Settings, model_path

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console()

Only = Annotated[str, typer.Option(help="Send only the shapes whose name contains this.")]
Model = Annotated[str, typer.Option(help="Model to serve: smollm2, tiny, or a directory.")]
OutDir = Annotated[Path, typer.Option(help="Folder of the recordings.")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    model: Model = "smollm2",
    only: Only = "",
    out: OutDir = Path("bench/results/parity"),
    left: Annotated[str, typer.Option(help="The reference system.")] = "vllm",
    right: Annotated[str, typer.Option(help="The system under test.")] = "tritonlive",
) -> None:
    """Record both systems in turn, compare, and print every difference.

    The exit status is 1 if a difference is not in `bench/parity/justified.toml`, an entry there matches no difference,
    or an answer fails one of its checks. Recordings stay in `--out`, one per system, so that one side can be recorded
    again alone:

    * `python -m bench.parity record --system tritonlive --out bench/results/parity/tritonlive.json`
    * `python -m bench.parity compare bench/results/parity/vllm.json bench/results/parity/tritonlive.json`
    * `python -m bench.parity --right vllm` compares two runs of vLLM's server, which shows the harness's own noise.
    """
    if context.invoked_subcommand is not None:
        return
    shapes = selected(only)
    # If both sides are the same system, the files need different names.
    paths = [
        out / f"{system}{suffix}.json" for system, suffix in ((left, ""), (right, "-again" if left == right else ""))
    ]
    for system, path in zip((left, right), paths, strict=True):
        recordings.save(record_system(system, model_path(model), shapes), path)
    raise typer.Exit(judge(*paths, shapes))


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="The recording to write.")],
    system: Annotated[str, typer.Option(help=f"System to start: {', '.join(SYSTEMS)}.")] = "tritonlive",
    url: Annotated[str | None, typer.Option(help="Record this running server instead of starting one.")] = None,
    profile: Annotated[str, typer.Option(help="With --url: the profile the server was started with.")] = "hermes",
    model: Model = "smollm2",
    only: Only = "",
) -> None:
    """Record one system's answers."""
    shapes = selected(only)
    if url is None:
        recordings.save(record_system(system, model_path(model), shapes), out)
        return
    shapes = [shape for shape in shapes if shape.profile == profile]
    with progress(url, shapes) as advance:
        recordings.save(recordings.record(url, shapes, advance), out)


@app.command("compare")
def compare_files(
    left: Annotated[Path, typer.Argument(help="Recording of vLLM's own server.")],
    right: Annotated[Path, typer.Argument(help="Recording of the system under test.")],
    only: Only = "",
) -> None:
    """Compare two recordings."""
    raise typer.Exit(judge(left, right, selected(only)))


def selected(only: str) -> list[Shape]:
    """The shapes whose name contains `only`."""
    shapes = [shape for shape in all_shapes() if only in shape.name]
    if not shapes:
        raise typer.BadParameter(f"no shape's name contains {only!r}")
    return shapes


def judge(left: Path, right: Path, shapes: list[Shape]) -> int:
    """Print the comparison of two recordings; returns the exit status."""
    one, other = recordings.load(left), recordings.load(right)
    shapes = [shape for shape in shapes if shape.name in one or shape.name in other]
    verdict = compare(one, other, shapes, load_justifications())
    wrong = {path.stem: failures(recording, shapes) for path, recording in ((left, one), (right, other))}
    print_verdict(console, verdict, wrong, left.stem, right.stem)
    return 0 if verdict.is_ok and not any(wrong.values()) else 1


def record_system(system: str, model: Path, shapes: list[Shape]) -> Recording:
    """Start the system once per profile that the shapes need, and record it."""
    recording: Recording = {}
    for profile in PROFILES:
        chosen = [shape for shape in shapes if shape.profile == profile]
        if not chosen:
            continue
        settings = Settings(model, server_args(profile), served_name=MODEL)
        console.print(f"{system}: starting the {profile} server …", style="dim")
        with SYSTEMS[system](settings) as server, progress(f"{system}, {profile}", chosen) as advance:
            recording |= recordings.record(server.url, chosen, advance)
    return recording


@contextmanager
def progress(title: str, shapes: list[Shape]) -> Iterator[recordings.OnAnswer]:
    """Show a progress bar over the shapes; yields the function to call after each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=len(shapes))
        yield lambda shape: bar.advance(task)


if __name__ == "__main__":
    app()
