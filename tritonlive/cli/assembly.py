"""Put groups of subcommands together to a command line, and run it."""

import atexit
import gc
from types import ModuleType

import typer

from .target_options import EPILOG


def assemble(text: str, *groups: ModuleType, has_completion: bool) -> typer.Typer:
    """A command line with the subcommands of `groups`: those of each module's `app`."""
    assembled = typer.Typer(
        help=text,
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=has_completion,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,  # a stack with local variables would show keys
    )
    for group in groups:
        assembled.add_typer(group.app)
    return assembled


def run(command: typer.Typer, name: str) -> None:
    """Run a command line as this process's only work."""
    # The interpreter collects garbage as it ends, which takes 0.4 s among torch's objects.
    atexit.register(gc.freeze)
    command(prog_name=name)
