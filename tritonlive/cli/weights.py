"""The command line: `python -m sync push | check | status | timeline | rollback | reload`, and of adapters."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn
from rich.table import Table

from .control.client import connect
from .control.target import Target
from .errors import CheckError, CommitError, DeadlineError, RefusedError, SyncError, UnavailableError
from .push.weight_sync import WeightSync
from .weights.device_source import require_gpu

if TYPE_CHECKING:
    from .adapters.adapters import AdapterReport
    from .push.report import PushReport

EXIT_CODES: dict[type[SyncError], int] = {
    CheckError: 3,
    RefusedError: 4,
    UnavailableError: 5,
    DeadlineError: 6,
    CommitError: 7,
}
INTERRUPTED = 130

EPILOG = """
[bold]A target[/bold] is a front end, http://127.0.0.1:9000, or Triton itself, grpc://127.0.0.1:8001.

[bold]The control key[/bold] comes from TRITONLIVE_CONTROL_KEY, from --control-key, or stands in the target: \
http://user:KEY@host:9000.

[bold]Exit codes[/bold]: 0 done · 1 failed, nothing changed · 2 wrong usage · 3 the weights do not fit · \
4 control key refused · 5 nobody answers · 6 deadline passed · 7 committed at some replicas only · \
130 interrupted, given up cleanly.
"""

app = typer.Typer(
    help="Push weights into running tritonlive servers, and look at what they serve.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,  # a stack with local variables would show the key
)


class BackendName(StrEnum):
    """How the bytes travel."""

    GLOO = "gloo"
    NCCL = "nccl"
    IPC = "ipc"


class Pause(StrEnum):
    """What becomes of running requests."""

    KEEP = "keep"
    WAIT = "wait"
    ABORT = "abort"


To = Annotated[
    list[str],
    typer.Option("--to", metavar="TARGET", help="http://host:9000 or grpc://host:8001. Repeat for a fleet."),
]
One = Annotated[str, typer.Option("--to", metavar="TARGET", help="http://host:9000 or grpc://host:8001.")]
Checkpoint = Annotated[
    Path,
    typer.Option(metavar="DIR", exists=True, file_okay=False, help="Hugging Face checkpoint, safetensors files."),
]
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", envvar="TRITONLIVE_CONTROL_KEY", help="Control key; the variable hides it from `ps`."),
]
Seconds = Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Give up after so long.")]
Transport = Annotated[
    BackendName,
    typer.Option(help="As the servers were started with: gloo for CPUs, nccl or ipc for GPUs."),
]
Address = Annotated[
    str,
    typer.Option(metavar="ADDRESS", help="Where the servers' workers reach this process; it listens there only."),
]
Port = Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="On that address; 0 picks a free one.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@app.command()
def push(
    to: To,
    checkpoint: Checkpoint,
    version: Annotated[str | None, typer.Option(help="What responses will report; by default v1, v2, …")] = None,
    backend: Transport = BackendName.GLOO,
    control_key: Key = None,
    timeout: Seconds = 300.0,
    master_address: Address = "127.0.0.1",
    master_port: Port = 0,
    in_flight: Annotated[
        Pause, typer.Option(help="Running requests go on with the new weights, are waited for, or are ended.")
    ] = Pause.KEEP,
    partial: Annotated[
        bool, typer.Option("--partial", help="Push only what the checkpoint has; the rest stays as pushed before.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Push a checkpoint from disk while the servers keep answering.

    With nccl and ipc each tensor goes to this process's GPU first, one at a time; without a GPU take gloo.

    python -m sync push --to http://127.0.0.1:9000 --checkpoint ./my-model --version step-100
    """
    listens = {"master_address": master_address, "master_port": master_port}
    with reported():
        require_gpu(backend.value)
    with opened(to, control_key, timeout, backend=backend.value, **listens) as sync, progress_bar() as progress:
        report = sync.push(checkpoint, version, progress=progress, in_flight=in_flight.value, partial=partial)
    show(report, as_json=as_json)


@app.command()
def check(
    to: To,
    checkpoint: Checkpoint,
    backend: Transport = BackendName.GLOO,
    control_key: Key = None,
    timeout: Seconds = 60.0,
    master_address: Address = "127.0.0.1",
    master_port: Port = 0,
) -> None:
    """Tell whether a push of this checkpoint would work, listing everything against it; changes nothing.

    Names, shapes and dtypes; the servers' state, transport, world size and memory; the port to listen on.
    """
    listens = {"master_address": master_address, "master_port": master_port}
    with opened(to, control_key, timeout, backend=backend.value, **listens) as sync:
        sync.check(checkpoint)
    Console().print("The weights fit.")


@app.command()
def status(to: One, control_key: Key = None, timeout: Seconds = 10.0, as_json: Json = False) -> None:
    """Print a server's state and weight version."""
    with reported(), connect(Target.parse(to, control_key), timeout) as client:
        answer = client.status()
    if as_json:
        Console().print_json(data=answer)
        return
    table = Table(show_header=False, box=None)
    for name, value in answer.items():
        if value is not None:
            table.add_row(f"[bold]{name}[/bold]", json.dumps(value) if isinstance(value, dict) else str(value))
    Console().print(table)


@app.command()
def timeline(to: One, control_key: Key = None, timeout: Seconds = 10.0, as_json: Json = False) -> None:
    """Show the last pushes: when, by whom, how long staged, paused and loaded, and how they ended."""
    from .control.timeline import MIN_WIDTH, timeline_table

    with reported(), connect(Target.parse(to, control_key), timeout) as client:
        answer = client.timeline()
    if as_json:
        Console().print_json(data=answer)
    else:
        Console(width=max(MIN_WIDTH, Console().width)).print(timeline_table(answer))


@app.command()
def rollback(
    to: To,
    version: Annotated[
        str | None, typer.Option(help="The version to serve; by default the newest before what serves now.")
    ] = None,
    backend: Transport = BackendName.GLOO,
    control_key: Key = None,
    timeout: Seconds = 300.0,
) -> None:
    """Serve an earlier version again, which the servers still hold; `status` lists them (kept_versions)."""
    with opened(to, control_key, timeout, backend=backend.value) as sync:
        version = sync.rollback(version)
    Console().print(f"{version} serves again.", markup=False, highlight=False)


@app.command()
def reload(
    to: To,
    version: Annotated[
        str | None, typer.Option(help="What these weights are called; needed when the files have changed.")
    ] = None,
    control_key: Key = None,
    timeout: Seconds = 300.0,
) -> None:
    """Serve the checkpoint on the servers' disks again: the way back that needs no trainer."""
    with opened(to, control_key, timeout) as sync:
        version = sync.reload(version)
    Console().print(f"{version} serves again.", markup=False, highlight=False)


Name = Annotated[str, typer.Option(metavar="NAME", help="What requests ask for as their model.")]


@app.command("push-adapter")
def push_adapter(
    to: To,
    adapter: Annotated[
        Path, typer.Option(metavar="DIR", exists=True, file_okay=False, help="LoRA adapter, as PEFT saves it.")
    ],
    name: Name,
    version: Annotated[str | None, typer.Option(help="What answers will report; by default v1, v2, …")] = None,
    control_key: Key = None,
    timeout: Seconds = 300.0,
    as_json: Json = False,
) -> None:
    """Push a LoRA adapter from disk; all servers take it or none does.

    python -m sync push-adapter --to http://127.0.0.1:9000 --adapter ./my-adapter --name mine
    """
    with opened(to, control_key, timeout) as sync:
        report = sync.push_adapter(name, adapter, version)
    show(report, as_json=as_json)


@app.command()
def adapters(to: One, control_key: Key = None, timeout: Seconds = 10.0, as_json: Json = False) -> None:
    """List a server's pushed adapters: version, state, size, and how many requests run on each."""
    with reported(), connect(Target.parse(to, control_key), timeout) as client:
        listed = client.adapters()
    if as_json:
        Console().print_json(data=listed)
        return
    columns = ("name", "version", "state", "bytes", "tensors", "requests")
    table = Table(*columns, box=None)
    for each in listed:
        table.add_row(*(str(each[column]) for column in columns))
    Console().print(table)


@app.command("remove-adapter")
def remove_adapter(to: To, name: Name, control_key: Key = None, timeout: Seconds = 60.0) -> None:
    """Serve a pushed adapter no more; running requests end with it."""
    with opened(to, control_key, timeout) as sync:
        sync.remove_adapter(name)
    Console().print(f"{name} is removed.", markup=False, highlight=False)


@contextmanager
def reported() -> Iterator[None]:
    """Errors in words and as exit codes. Lines stay whole, for whoever reads them through a pipe."""
    stderr = Console(stderr=True)
    try:
        yield
    except SyncError as error:
        stderr.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        for note in getattr(error, "__notes__", ()):
            stderr.print(note, markup=False, highlight=False, soft_wrap=True)
        code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        stderr.print("Interrupted; the update was given up.")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def opened(to: list[str], control_key: str | None, timeout: float, **options: Any) -> Iterator[WeightSync]:
    """A WeightSync for the length of a `with` block, whose errors are reported."""
    with reported(), WeightSync(to, control_key=control_key, timeout=timeout, **options) as sync:
        yield sync


def show(report: "PushReport | AdapterReport", *, as_json: bool) -> None:
    if as_json:
        Console().print_json(data=asdict(report))
    else:
        Console().print(str(report), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on stderr; the function it gives takes bytes sent and bytes in all."""
    figures = (DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(
        TextColumn("{task.description}"), BarColumn(), *figures, console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("pushing", total=None)
        yield lambda sent, total: bar.update(task, completed=sent, total=total)
