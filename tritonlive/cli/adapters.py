"""`tritonlive push-adapter | adapters | remove-adapter`: LoRA adapters of running servers."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .reporting import connected, opened, say, show
from .target_options import ADAPTERS, Fleet, Json, Key, Seconds, Server

COLUMNS = ("name", "version", "state", "bytes", "tensors", "requests")

Name = Annotated[str, typer.Option(metavar="NAME", help="The model name for requests.")]

app = typer.Typer()


@app.command("push-adapter", rich_help_panel=ADAPTERS)
def push_adapter(
    to: Fleet,
    adapter: Annotated[
        Path, typer.Option(metavar="DIR", exists=True, file_okay=False, help="LoRA adapter in PEFT's format.")
    ],
    name: Name,
    version: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Version that responses report. [dim]Default: v1, v2, …[/dim]"),
    ] = None,
    control_key: Key = None,
    timeout: Seconds = 300.0,
    as_json: Json = False,
) -> None:
    """Push a LoRA adapter from disk. All servers take it or none does.

    [bold]Example[/bold]

        tritonlive push-adapter --to http://127.0.0.1:9000 --adapter ./my-adapter --name mine
    """
    with opened(to, control_key, timeout) as client:
        report = client.push_adapter(name, adapter, version)
    show(report, as_json=as_json)


@app.command(rich_help_panel=ADAPTERS)
def adapters(to: Server, control_key: Key = None, timeout: Seconds = 10.0, as_json: Json = False) -> None:
    """List a server's pushed adapters: version, state, size, and how many requests run on each."""
    with connected(to, control_key, timeout) as client:
        listed = client.adapters()
    if as_json:
        Console().print_json(data=listed)
        return
    table = Table(*COLUMNS, box=None)
    for each in listed:
        table.add_row(*(Text(str(each[column])) for column in COLUMNS))
    Console().print(table)


@app.command("remove-adapter", rich_help_panel=ADAPTERS)
def remove_adapter(to: Fleet, name: Name, control_key: Key = None, timeout: Seconds = 60.0) -> None:
    """Remove a pushed adapter. Requests that run on it finish with it."""
    with opened(to, control_key, timeout) as client:
        client.remove_adapter(name)
    say(f"{name} is removed.")
