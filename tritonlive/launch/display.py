"""Output of `tritonlive serve`: the phases of a start, and a block of addresses and commands when it is ready."""

import json
import os
import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE

from .ready import Ready
from .stack import Stack


class PhaseDisplay:
    """One line for each finished phase with its seconds, and a live line for the running phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), _Detail())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", detail="")
        self._phase: str | None = None
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(is_done=kind is None)
        self._progress.stop()

    def update(self, phase: str, detail: str = "") -> None:
        """Show that `phase` is running; `detail` is its last log line."""
        if phase != self._phase:
            self._finish(is_done=True)
            self._phase, self._since = phase, time.monotonic()
            self._progress.reset(self._task, description=phase)
        self._progress.update(self._task, detail=detail.strip())

    def _finish(self, *, is_done: bool) -> None:
        if self._phase is not None:
            mark = "[green]✓[/green]" if is_done else "[red]✗[/red]"
            self._console.print(f"{mark} {self._phase}  [dim]{time.monotonic() - self._since:.1f} s[/dim]")
        self._phase = None


class _Detail(ProgressColumn):
    """The end of a log line: dim, without markup, never wider than the terminal."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["detail"], style="dim", no_wrap=True, overflow="ellipsis")


def ready_lines(
    stack: Stack, ready: Ready, *, is_control_key_made_up: bool, dtype_note: str | None = None
) -> list[str]:
    """The lines of the ready block. A given key is not shown, only its variable; a dtype is shown if we chose it."""
    control_key = stack.control_key if is_control_key_made_up else f"${CONTROL_KEY_VARIABLE}"
    lines = [
        f"OpenAI API      {stack.frontend_url}/v1",
        *([f"OpenAI, Rust    {stack.rust_url}/v1   (inference only)"] if stack.rust_url else []),
        f"Triton          {_triton_ports(stack)}",
        f"Model           {ready.model}   weight version {ready.weight_version}",
    ]
    if dtype_note:
        lines.append(f"Dtype           {dtype_note}")
    if is_control_key_made_up:
        lines.append(f"Control key     {control_key}   (generated for this run; --control-key sets one)")
    lines.append(f"Logs            {_short(stack.triton_log.parent)}")
    request, push = _example_request(stack, ready), _push(stack, control_key)
    return [*lines, "", "Chat:" if ready.generates else "Pool:", f"  {request}", "", "Push new weights:", f"  {push}"]


def _triton_ports(stack: Stack) -> str:
    http = f"{stack.http_url}   " if stack.config.triton_http else ""
    return f"{http}gRPC {stack.grpc_url}   metrics {stack.metrics_url}"


def print_ready(console: Console, lines: list[str]) -> None:
    """Print the block without frame, wrapping or markup, so that its commands can be copied."""
    console.rule("[bold green]tritonlive is ready[/bold green]")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.rule("Ctrl-C stops it", style="dim")


def _example_request(stack: Stack, ready: Ready) -> str:
    chat = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    path, question = ("/v1/chat/completions", chat) if ready.generates else ("/pooling", {"input": "Paris"})
    body = {"model": ready.model, **question}
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if stack.api_key else ""
    return (
        f"curl {stack.frontend_url}{path}{key} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    )


def _push(stack: Stack, control_key: str) -> str:
    model = stack.config.model
    checkpoint = shlex.quote(model) if Path(model).is_dir() else "DIR"
    assignment = "" if control_key.startswith("$") else f"{CONTROL_KEY_VARIABLE}={control_key} "
    command = shlex.quote(_short(Path(sys.executable).with_name("tritonlive")))
    return f"{assignment}{command} push --to {stack.frontend_url} --checkpoint {checkpoint}"


def _short(path: Path) -> str:
    """The path relative to the working directory where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
