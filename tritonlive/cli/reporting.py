"""Output of the commands that talk to servers: results, progress, and errors with their exit codes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from sync.errors import CheckError, CommitError, DeadlineError, RefusedError, SyncError, UnavailableError

if TYPE_CHECKING:
    from sync import AdapterReport, PushReport, WeightSync
    from sync.control.client import ControlClient

EXIT_CODES: dict[type[SyncError], int] = {
    CheckError: 3,
    RefusedError: 4,
    UnavailableError: 5,
    DeadlineError: 6,
    CommitError: 7,
}
INTERRUPTED = 130


@contextmanager
def reported() -> Iterator[None]:
    """Prints errors as words, without breaking lines, and turns them into exit codes."""
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
        stderr.print("Interrupted; the update was aborted.")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def opened(to: list[str], control_key: str | None, timeout: float, **options: Any) -> "Iterator[WeightSync]":
    """A WeightSync for the length of a `with` block; its errors are reported."""
    from sync import WeightSync

    with reported(), WeightSync(to, control_key=control_key, timeout=timeout, **options) as client:
        yield client


@contextmanager
def connected(to: str, control_key: str | None, timeout: float) -> "Iterator[ControlClient]":
    """A control client of one server for the length of a `with` block; its errors are reported."""
    from sync.control.connect import connect
    from sync.control.target import Target

    with reported(), connect(Target.parse(to, control_key), timeout) as client:
        yield client


def show(report: "PushReport | AdapterReport", *, as_json: bool) -> None:
    """Print a report of a push."""
    if as_json:
        Console().print_json(data=asdict(report))
    else:
        say(str(report))


def say(text: str) -> None:
    """Print a line as it is: a version may be named `[red]`, which is not markup."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on stderr. The yielded function takes the bytes sent and the bytes in all."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    figures = (DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(
        TextColumn("{task.description}"), BarColumn(), *figures, console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("pushing", total=None)
        yield lambda sent, total: bar.update(task, completed=sent, total=total)
