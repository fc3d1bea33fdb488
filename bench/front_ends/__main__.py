"""`python -m bench.front_ends`: compares front ends by throughput, time to the first token, and processor time."""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import machine
from bench.front_ends.ceiling import free_front_ends
from bench.front_ends.ceiling import sides as ceiling_sides
from bench.front_ends.comparison import AnyLoad, aiperf_loads, ceilings, plan, sides, start
from bench.front_ends.names import ALL, OURS, VLLM
from bench.front_ends.report import Report, print_report, write
from bench.front_ends.stream_load import Generator
from bench.measure import Effort, Load, Side, run_load
from bench.systems import Settings, Systems, model_path
from sync import SyncError
from tritonlive.launch import rust_binary
from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.errors import LaunchError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
MIN_WIDTH = 190
console = Console(width=max(MIN_WIDTH, Console().width))
ENGINE_ARGS = (
    *("--max-model-len", "2048", "--max-num-batched-tokens", "2048", "--max-num-seqs", "128"),
    "--enforce-eager",
)
"""vLLM arguments of every system, unless others are given."""
CONCURRENCIES = (64, 128, 16)
QUICK_CONCURRENCIES = (64,)
FAILURES = (RuntimeError, LaunchError, SyncError)


@app.command()
def run(
    quick: Annotated[bool, typer.Option("--quick", help="64 concurrent requests only, two runs.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run only loads whose name contains this, such as ceiling; may be repeated."),
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Runs per load and system. [default: 3, quick: 2]")] = None,
    model: Annotated[str, typer.Option(help="tiny, smollm2 or a directory.")] = "tiny",
    concurrency: Annotated[
        list[int] | None, typer.Option(help="May be repeated. [default: 64, 128, 16; quick: 64]")
    ] = None,
    system: Annotated[list[str] | None, typer.Option(help=f"{', '.join(ALL)}; may be repeated. [default: all]")] = None,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help=f"vLLM's arguments of all systems. [default: {' '.join(ENGINE_ARGS)}]")
    ] = None,
    aiperf: Annotated[Path | None, typer.Option(help="NVIDIA's aiperf; adds a load of chats that it sends.")] = None,
    minutes: Annotated[float, typer.Option(help="After this time, no further load begins.")] = 30.0,
    out: Annotated[Path, typer.Option(help="The results file. The picture is written beside it.")] = Path(
        "bench/results/front_ends.json"
    ),
) -> None:
    """Compare front ends, by default with a tiny model, whose tokens cost little: serving is most of the work.

    `vllm` is `vllm serve`, `vllm-rust` the same with its Rust front end, `tritonlive` our FastAPI front end,
    `tritonlive-rust` our Rust port, `triton-grpc` Triton's own endpoint. Loads named `ceiling` have free tokens and no
    Triton. Streams come from `vllm-rs bench serve`. The exit status is 1 if a system or a load
    fails, or if nothing was measured. Missed targets are shown.
    """
    comparison = Comparison(
        Generator(fetch_binary(), model_path(model), aiperf),
        only or [""],
        repeats or (2 if quick else 3),
        time.monotonic() + 60 * minutes,
    )
    began = time.perf_counter()
    engine_args = (*machine.engine_args(), *(engine_arg or ENGINE_ARGS))
    loads = plan(concurrency or (QUICK_CONCURRENCIES if quick else CONCURRENCIES))
    loads += aiperf_loads() if aiperf else []
    try:
        comparison.measure_ceilings()
        comparison.measure_systems(engine_args, loads, system or list(ALL))
    finally:
        print_report(console, comparison.report)
    elapsed_s = time.perf_counter() - began
    about = {
        "model": Path(model).name,
        "engine_args": engine_args,
        "quick": quick,
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "elapsed_s": round(elapsed_s),
    }
    for path in write(comparison.report, machine.describe(), about, out):
        console.print(f"wrote {path}")
    console.print(f"took {elapsed_s:.0f} s")
    raise typer.Exit(1 if comparison.report.failures or not comparison.report.results else 0)


def fetch_binary() -> Path:
    """`vllm-rs`, the load generator."""
    return rust_binary.find_or_fetch(default_cache_dir(), lambda detail: console.print(detail, style="dim"))


class Comparison:
    """Measures loads and collects the report."""

    def __init__(self, generator: Generator, only: list[str], repeats: int, deadline: float) -> None:
        """deadline: by time.monotonic(); no load begins after it."""
        self.report = Report()
        self._only = only
        self._effort = Effort(repeats, repeats, 0.0)
        self._deadline = deadline
        self._generator = generator

    def is_asked_for(self, load: Load) -> bool:
        return any(part in load.name for part in self._only)

    def measure_ceilings(self) -> None:
        for step_s, loads in ceilings().items():
            if wanted := [load for load in loads if self.is_asked_for(load)]:
                console.print(f"starting front ends over steps of {step_s * 1e3:.0f} ms …", style="dim")
                try:
                    with free_front_ends(step_s, self._generator.binary) as front_ends:
                        for load in wanted:
                            self.measure(load, ceiling_sides(front_ends, load, self._generator))
                except FAILURES as error:  # of a front end that does not start
                    self.fail(wanted[0].name, error)

    def measure_systems(self, engine_args: tuple[str, ...], loads: list[AnyLoad], names: list[str]) -> None:
        wanted = [load for load in loads if self.is_asked_for(load)]
        if not wanted:
            return
        settings = Settings(self._generator.tokenizer, engine_args)
        with Systems(
            settings, (OURS, VLLM), lambda label: console.print(f"starting {label} …", style="dim")
        ) as systems:
            started = [name for name in names if self.starts(systems, name)]
            for load in wanted if started else []:
                self.measure(load, sides(systems, load, self._generator, started))
        self.report.memory.update(systems.memory)

    def starts(self, systems: Systems, name: str) -> bool:
        """Start a system. One that does not start is a failure, and the others are measured without it."""
        try:
            start(systems, name)
        except FAILURES as error:
            self.fail(name, error)
            return False
        return True

    def measure(self, load: Load, sides: Sequence[Side]) -> None:
        if time.monotonic() > self._deadline:
            console.print(f"{load.name}: left out, the time is over", style="yellow")
            return
        with console.status("") as status:
            try:
                result = run_load(load, sides, self._effort, status.update)
            except FAILURES as error:
                self.fail(load.name, error)
                return
        self.report.results.append(result)
        for system in result.sides:
            spread = result.spread(system, "tokens/s")
            console.print(f"{load.name}, {system}: {spread.median if spread else 0:.0f} tokens/s", style="dim")

    def fail(self, name: str, error: Exception) -> None:
        """Note the failure of a load or a system."""
        self.report.failures[name] = str(error)
        console.print(f"{name}: FAILED: {error}", style="red")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    app()
