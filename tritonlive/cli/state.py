"""`tritonlive status | timeline`: what a running server serves."""

import json

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .reporting import connected
from .target_options import GROUP, Json, Key, Seconds, Server
from .timeline import MIN_WIDTH, timeline_table

app = typer.Typer()


@app.command(rich_help_panel=GROUP)
def status(to: Server, control_key: Key = None, timeout: Seconds = 10.0, as_json: Json = False) -> None:
    """Print a server's state and weight version."""
    with connected(to, control_key, timeout) as client:
        answer = client.status()
    if as_json:
        Console().print_json(data=answer)
        return
    table = Table(show_header=False, box=None)
    for name, value in answer.items():
        if value is not None:
            shown = json.dumps(value) if isinstance(value, dict) else str(value)
            table.add_row(Text(name, style="bold"), Text(shown))
    Console().print(table)


@app.command(rich_help_panel=GROUP)
def timeline(to: Server, control_key: Key = None, timeout: Seconds = 10.0, as_json: Json = False) -> None:
    """Show the last pushes: when, by whom, how long each phase took, and how they ended."""
    with connected(to, control_key, timeout) as client:
        answer = client.timeline()
    if as_json:
        Console().print_json(data=answer)
    else:
        Console(width=max(MIN_WIDTH, Console().width)).print(timeline_table(answer))
