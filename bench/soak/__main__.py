"""`python -m bench.soak`: half an hour of mixed load, pushes and kills."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench import machine
from bench.soak import picture, samples
from bench.soak.load import Load
from bench.soak.report import Kill, Run
from bench.soak.stack import MODEL, POLL_S, SoakStack, StackDiedError
from bench.soak.trainer import Trainer

app = typer.Typer(add_completion=False)
console = Console(soft_wrap=True)
KILLS = {"engine": "engine core", "stub": "stub", "tritonserver": "tritonserver", "frontend": "front end"}
WARM_UP_S = 300.0


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.5)] = 30.0,
    clients: Annotated[int, typer.Option(min=1, help="Requests that run at a time.")] = 12,
    push_every: Annotated[float, typer.Option(help="Seconds between pushes of weights and of an adapter.")] = 20.0,
    kill: Annotated[
        str, typer.Option(help=f"What gets SIGKILL, separated by commas: {', '.join(KILLS)}; or none.")
    ] = ",".join(KILLS),
    sample_every: Annotated[float, typer.Option(help="Seconds between samples of the processes.")] = 5.0,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for results, picture, logs and core dumps.")] = Path(
        "bench/results/soak"
    ),
    serve_arg: Annotated[list[str] | None, typer.Option(help="A further argument of `tritonlive serve`.")] = None,
) -> None:
    """Run a stack of the tiny model. Fail if a process grows once warm, an answer is lost, or a kill is not survived.

    A kill of each kind comes after the first half, at equal distances. A process is warm after five minutes, or after a
    third of a short run. A run that is interrupted (SIGINT, SIGTERM) writes what it has seen until then.
    """
    roles = [KILLS[_known(name)] for name in kill.split(",") if name and name != "none"]
    run = Run(min(WARM_UP_S, minutes * 60 / 3))
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has started us with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        with SoakStack(out.resolve(), serve_arg or [], console.print) as stack:
            before = set(stack.crashes())
            try:
                _run(run, stack, minutes * 60, clients, push_every, sample_every, roles, seed)
            finally:
                run.crashes += sorted(set(stack.crashes()) - before)
    except StackDiedError as error:
        run.crashes.append(str(error))
    except KeyboardInterrupt:
        run.crashes.append("interrupted")
    _write(run, out)
    _print(run)
    raise typer.Exit(1 if run.verdict() else 0)


def _known(name: str) -> str:
    if name not in KILLS:
        raise typer.BadParameter(f"{name}: one of {', '.join(KILLS)}", param_hint="--kill")
    return name


def _run(
    run: Run,
    stack: SoakStack,
    seconds: float,
    clients: int,
    push_every: float,
    sample_every: float,
    roles: list[str],
    seed: int,
) -> None:
    """Load, trainer and samples side by side; kills in between."""
    began = time.monotonic()
    trainer = Trainer(stack, push_every, began, run.pushes.append)
    load = Load(stack.url, MODEL, seed, began, trainer.has_adapter)
    client_thread = threading.Thread(target=lambda: asyncio.run(load.run(clients)), name="clients")
    kills = [(seconds * (0.5 + 0.5 * number / len(roles)), role) for number, role in enumerate(roles)]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    trainer.start()
    client_thread.start()
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("soaking", total=seconds)

            def look() -> None:
                """Take a sample if it is time for one."""
                at = time.monotonic() - began
                if run.shared_memory_mib and at - run.shared_memory_mib[-1][0] < sample_every:
                    return
                run.samples += samples.take(stack.pid, at)
                run.shared_memory_mib.append((at, samples.shared_memory_mib()))
                text = f"{len(load.answers)} answers, {len(run.pushes)} pushes"
                progress.update(task, completed=at, description=text)

            while (at := time.monotonic() - began) < seconds or kills:  # every kill happens, if late
                stack.check()
                if kills and at >= kills[0][0]:
                    run.kills.append(_kill(stack, trainer, kills.pop(0)[1], began, look))
                look()
                time.sleep(POLL_S)
    finally:
        load.stop()
        trainer.stop()
        client_thread.join()
        run.answers = load.answers


def _kill(stack: SoakStack, trainer: Trainer, role: str, began: float, look: Callable[[], None]) -> Kill:
    """Kill, and wait until the stack answers. Calls `look` again and again meanwhile."""
    trainer.has_adapter.clear()
    at = time.monotonic() - began
    if not stack.kill(role):
        raise StackDiedError(f"there is no process {role!r} to kill")
    recovered_s = stack.wait_for_answer(look=look)
    trainer.has_adapter.clear()  # a push that ended with the kill may have set it
    console.print(f"{at:.0f} s: killed {role}; answered again after {recovered_s} s", markup=False)
    return Kill(role, at, recovered_s)


def _write(run: Run, out: Path) -> None:
    about = {"machine": machine.describe()} | run.as_json()
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(about, indent=1) + "\n")
    console.print(f"wrote {out / 'soak.json'}")
    if picture.draw(run, out / "soak.png"):
        console.print(f"wrote {out / 'soak.png'}")


def _print(run: Run) -> None:
    """The figures, and the verdict."""
    latency = run.latency()
    outcomes = sorted({outcome for counts in run.statuses().values() for outcome in counts})
    table = Table("kind", *outcomes, "p50 s", "p99 s", box=None)
    for kind, counts in run.statuses().items():
        figures = [f"{value:g}" for value in latency.get(kind, [])] or ["", ""]
        table.add_row(kind, *(str(counts.get(outcome, "")) for outcome in outcomes), *figures)
    console.print(table)
    pushed = sum(push.outcome == "answered" for push in run.pushes)
    console.print(f"pushes: {pushed} of {len(run.pushes)}")
    for killed in run.kills:
        console.print(f"{killed.role} killed at {killed.at_s:.0f} s: answered again after {killed.recovered_s} s")
    for line in run.verdict():
        console.print(f"NOT FLAT: {line}" if " grew " in line else f"WRONG: {line}", style="red", markup=False)
    if not run.verdict():
        console.print("flat after the warm-up, and every error belongs to a kill", style="green")


if __name__ == "__main__":
    app()
