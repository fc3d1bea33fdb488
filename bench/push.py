"""`python -m bench.push`: what a push costs, beside what it cannot do without.

In one run and in turns: pushes to one replica, pushes to two, a bare gloo broadcast of the same bytes to one process,
and vLLM's `load_weights` of the same tensors in an engine that nobody else uses.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.systems import model_path
from launch.config import StackConfig
from launch.stack import Stack
from sync import WeightSync
from sync.gloo import GlooGroup, host_store
from sync.sources import open_source

ENGINE_ARGS = ("--max-model-len", "2048", "--enforce-eager")
START_TIMEOUT_S = 300.0
TIMEOUT_S = 120.0
KEY = "bench-control-key"
Seconds = dict[str, list[float]]

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
console = Console()


@app.command()
def run(
    model: Annotated[str, typer.Option(help="smollm2, tiny or a directory.")] = "smollm2",
    repeats: Annotated[int, typer.Option(help="Measurements of each kind.")] = 7,
    out: Annotated[Path, typer.Option(help="The results file.")] = Path("bench/results/push.json"),
) -> None:
    """Measure pushes over gloo. Ends with status 1 if a target is missed.

    Targets: a push takes at most 1.3 times a bare broadcast and a load together; generation stands still for at most
    1.1 times a load; two replicas take at most 1.3 times one.
    """
    folder = model_path(model)
    original = dict(open_source(folder))
    torch.manual_seed(0)
    perturbed = {name: tensor + torch.randn_like(tensor) * 1e-3 for name, tensor in original.items()}
    num_bytes = sum(tensor.numel() * tensor.itemsize for tensor in original.values())
    with ExitStack() as running:
        console.print("starting two replicas, a bare receiver and a bare engine …", style="dim")
        replicas = [running.enter_context(_replica(folder)) for _ in range(2)]
        kinds: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, float]]] = {
            "one": running.enter_context(_pusher(replicas[:1])),
            "two": running.enter_context(_pusher(replicas)),
            "broadcast": running.enter_context(_bare_broadcast(num_bytes)),
            "load": running.enter_context(_bare_load(folder)),
        }
        seconds: Seconds = {}
        for repeat in range(repeats + 1):
            for kind, measure in kinds.items():
                # Each kind pushes other weights than it pushed last, or the replicas would call it unchanged.
                weights = perturbed if (repeat % 2 == 0) != (kind == "two") else original
                for name, value in measure(weights).items():
                    if repeat:  # the first connects, and touches fresh memory
                        seconds.setdefault(f"{kind} {name}".strip(), []).append(value)
    rows = ratios(seconds)
    console.print(_table(rows, seconds, num_bytes))
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine.describe(), "bytes": num_bytes, "repeats": repeats, "seconds": seconds, "ratios": rows}
    out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"wrote {out}")
    raise typer.Exit(0 if all(row["is_ok"] for row in rows) else 1)


def ratios(seconds: Seconds) -> list[dict[str, Any]]:
    """Medians held against the targets."""
    typical = {name: median(values) for name, values in seconds.items()}
    held = (
        ("push / (broadcast + load)", typical["one push"], typical["broadcast"] + typical["load"], 1.3),
        ("pause / load", typical["one pause"], typical["load"], 1.1),
        ("two replicas / one", typical["two push"], typical["one push"], 1.3),
    )
    return [
        {"what": what, "ratio": ours / theirs, "target": target, "is_ok": ours / theirs <= target}
        for what, ours, theirs, target in held
    ]


def _table(rows: list[dict[str, Any]], seconds: Seconds, num_bytes: int) -> Table:
    table = Table(title=f"pushes of {num_bytes / 1e6:.0f} MB over gloo, medians", title_justify="left", box=None)
    for heading in ("", "seconds", "low to high", "ratio", "at most", ""):
        table.add_column(heading)
    for name, values in seconds.items():
        table.add_row(name, f"{median(values):.3f}", f"{min(values):.3f} to {max(values):.3f}")
    for row in rows:
        verdict = "ok" if row["is_ok"] else "SHORT"
        table.add_row(row["what"], "", "", f"{row['ratio']:.2f}", f"{row['target']:.1f}", verdict)
    return table


@contextmanager
def _replica(folder: Path) -> Iterator[str]:
    config = StackConfig(model=str(folder), served_model_name="model", extra_args=ENGINE_ARGS, control_key=KEY)
    with Stack(config) as stack:
        stack.wait_ready(START_TIMEOUT_S)
        yield f"grpc://{stack.grpc_url}"


@contextmanager
def _pusher(targets: list[str]) -> Iterator[Callable[[dict[str, torch.Tensor]], dict[str, float]]]:
    """Pushes with a group that is formed before the clock starts; it is left after each, for the other kind's sake."""

    def push(weights: dict[str, torch.Tensor]) -> dict[str, float]:
        with WeightSync(targets, backend="gloo", control_key=KEY, timeout=TIMEOUT_S) as sync:
            report = sync.push(weights)
        if report.unchanged:
            raise RuntimeError("the replica had these weights already: nothing was measured")
        return {"push": report.transfer_s + report.commit_s, "pause": report.paused_s, "load": report.load_s}

    yield push


@contextmanager
def _child(*arguments: str, **variables: str) -> Iterator[Callable[[str], str]]:
    """Another process of this module; the function it gives sends a line and waits for the answer."""
    command = [sys.executable, "-m", "bench.push_child", *arguments]
    with subprocess.Popen(
        command, env=os.environ | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def ask(line: str) -> str:
            if child.stdin is None or child.stdout is None:
                raise RuntimeError("the child has no pipes")
            child.stdin.write(line + "\n")
            child.stdin.flush()
            while not (answer := child.stdout.readline()).startswith("answer "):
                if not answer:
                    raise RuntimeError(f"{' '.join(arguments)} ended with status {child.wait()}")
            return answer.removeprefix("answer ").strip()

        try:
            yield ask
        finally:
            child.kill()


@contextmanager
def _bare_broadcast(num_bytes: int) -> Iterator[Callable[[dict[str, torch.Tensor]], dict[str, float]]]:
    """One gloo broadcast of so many bytes, until the other process says that it has them."""
    store, port = host_store("127.0.0.1", 0, TIMEOUT_S)
    with _child("receive", str(port), str(num_bytes)) as ask:
        group = GlooGroup(store, 0, 2, "127.0.0.1", "bench", TIMEOUT_S)
        data = torch.zeros(num_bytes, dtype=torch.uint8)

        def broadcast(_: dict[str, torch.Tensor]) -> dict[str, float]:
            began = time.perf_counter()
            group.wait(group.broadcast(data))
            ask("done?")
            return {"": time.perf_counter() - began}

        yield broadcast
        group.close()


@contextmanager
def _bare_load(folder: Path) -> Iterator[Callable[[dict[str, torch.Tensor]], dict[str, float]]]:
    """The layerwise load of the checkpoint's tensors in an engine of its own."""
    with _child("load", str(folder), VLLM_ENABLE_V1_MULTIPROCESSING="0") as ask:
        ask("ready?")
        yield lambda _: {"": float(ask("load"))}


if __name__ == "__main__":
    app()
