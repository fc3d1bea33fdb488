"""The `tritonlive` command: assembles the groups, and the smaller commands of `python -m sync`."""

import atexit
import gc
from types import ModuleType
from typing import Annotated

import typer

import tritonlive

from . import adapters, frontend, model_repository, serve, state, triton_env, weights
from .target_options import EPILOG


def assemble(text: str, *groups: ModuleType, has_completion: bool) -> typer.Typer:
    """A command line with the subcommands of `groups`, which have their own in `app`."""
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


app = assemble(
    "Serve a language model on NVIDIA Triton, with the OpenAI API, and replace its weights while it serves.",
    *(serve, frontend, triton_env, model_repository, weights, state, adapters),
    has_completion=True,
)
trainer_app = assemble(
    "Push weights into running tritonlive servers, and look at what they serve. [bold]tritonlive[/bold] has the same "
    "commands.",
    *(weights, state, adapters),
    has_completion=False,
)
"""`python -m sync`: the commands that need no server on this machine."""


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(tritonlive.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the command."""


def main() -> None:
    """Entry point of the `tritonlive` command."""
    run(app, "tritonlive")


def run(command: typer.Typer, name: str) -> None:
    """Run a command line as this process's only work."""
    # The interpreter collects garbage as it ends, which takes 0.4 s among torch's objects.
    atexit.register(gc.freeze)
    command(prog_name=name)
