"""The table of docs/gpu.md: pushes of random models from a GPU by each backend, beside a raw broadcast and a load.

    python -m bench.gpu_push --sizes 0.5b 7b --backends nccl ipc gloo --repeats 5

bench/gpu.sh runs it beside a comparison of servers. Never run: no GPU was available. docs/gpu.md says what NCCL needs
on a machine with one GPU.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.child import Child
from bench.random_checkpoint import SIZES, random_checkpoint
from sync import PushReport, SyncError, WeightSync
from sync.push.preflight import SERVER_BACKENDS
from sync.weights.checkpoint_source import CheckpointSource
from tritonlive.launch import Stack, StackConfig, ports
from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.default_model import default_model

RAW = "broadcast + load"
READY_TIMEOUT_S = 600.0
PUSH_TIMEOUT_S = 600.0
CONTROL_KEY = "gpu-push"


@dataclass(frozen=True)
class Row:
    """Medians of one model and one way to push, in seconds; or the `problem` that prevented a measurement."""

    size: str
    way: str
    num_bytes: int
    seconds: float = 0.0
    paused_s: float | None = None
    problem: str = ""

    def cells(self) -> list[str]:
        if self.problem:
            return [self.size, self.way, self.problem, "", ""]
        pause = f"{self.paused_s:.3f}" if self.paused_s is not None else "-"
        return [self.size, self.way, f"{self.seconds:.3f}", f"{self.num_bytes / self.seconds / 1e9:.1f}", pause]


def table(rows: list[Row]) -> str:
    """Format the rows as a Markdown table for docs/gpu.md."""
    header = ["model", "way", "seconds", "GB/s", "pause, s"]
    lines = [header, ["---"] * len(header), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(size: str, backends: list[str], repeats: int) -> Iterator[Row]:
    cache = default_cache_dir()
    folder = random_checkpoint(cache / "models" / f"random-{size}", SIZES[size], default_model(cache))
    num_bytes = sum(meta.num_bytes for meta in CheckpointSource(folder).metadata())
    for backend in backends:
        try:
            reports = pushes(folder, backend, repeats)
        except SyncError as error:
            yield Row(size, backend, num_bytes, problem=str(error).partition("\n")[0])
            continue
        seconds = statistics.median(report.seconds for report in reports)
        yield Row(size, backend, num_bytes, seconds, statistics.median(report.paused_s for report in reports))
    yield Row(size, RAW, num_bytes, raw_seconds(folder, num_bytes, repeats, cache / "logs"))


def pushes(folder: Path, backend: str, repeats: int) -> list[PushReport]:
    """Push two sets of weights in turn from the trainer's GPU. The first two pushes allocate and are not counted."""
    import torch

    transfer = json.dumps({"backend": SERVER_BACKENDS[backend]})
    options = ("--enforce-eager", "--max-model-len", "2048", "--gpu-memory-utilization", "0.4")
    config = StackConfig(
        model=str(folder), extra_args=(*options, "--weight-transfer-config", transfer), control_key=CONTROL_KEY
    )
    device = f"cuda:{min(1, torch.cuda.device_count() - 1)}"
    torch.cuda.set_device(device)
    first = {name: tensor.to(device) for name, tensor in CheckpointSource(folder)}
    sets = [first, {name: tensor * 1.01 for name, tensor in first.items()}]
    with Stack(config) as stack:
        stack.wait_ready(READY_TIMEOUT_S)
        target = f"grpc://{stack.grpc_url}"
        with WeightSync(target, backend=backend, control_key=CONTROL_KEY, timeout=PUSH_TIMEOUT_S) as client:  # ty: ignore[invalid-argument-type]
            return [client.push(sets[number % 2 - 1]) for number in range(repeats + 2)][2:]


def raw_seconds(folder: Path, num_bytes: int, repeats: int, logs: Path) -> float:
    """Seconds of a median broadcast between two processes plus those of a median load in an idle engine."""
    (port,) = ports.pick_free("127.0.0.1", 1)
    arguments = [[str(rank), str(port), str(num_bytes)] for rank in (0, 1)]
    with (
        Child("bench.nccl_broadcast", arguments[0], {}, logs / "gpu-broadcast-0.log") as sender,
        Child("bench.nccl_broadcast", arguments[1], {}, logs / "gpu-broadcast-1.log") as receiver,
    ):
        broadcasts = []
        for _ in range(repeats + 1):
            receiver.send({})
            broadcasts.append(sender.ask({}))
            receiver.receive()
    with Child("bench.gpu_load", [str(folder)], {}, logs / "gpu-load.log") as engine:
        loads = [engine.ask({}) for _ in range(repeats + 1)]
    return statistics.median(broadcasts[1:]) + statistics.median(loads[1:])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_push", description="Pushes of random models on GPUs.")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--backends", nargs="+", choices=list(SERVER_BACKENDS), default=list(SERVER_BACKENDS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="File for the table.")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for size in arguments.sizes:
        for row in measure(size, arguments.backends, arguments.repeats):
            rows.append(row)
            print(" | ".join(row.cells()), flush=True)
    print(f"\n{table(rows)}")
    if arguments.output:
        arguments.output.write_text(f"{table(rows)}\n")


if __name__ == "__main__":
    main()
