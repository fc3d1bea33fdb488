"""The `tritonlive` command."""

from typing import Annotated

import typer

import tritonlive

from . import adapters, frontend, model_repository, serve, state, triton_env, weights
from .assembly import assemble, run

app = assemble(
    "Serve a language model on NVIDIA Triton, with the OpenAI API, and replace its weights while it serves.",
    *(serve, frontend, triton_env, model_repository, weights, state, adapters),
    has_completion=True,
)


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
