"""Options of the commands that start, or say how to start, a Triton server."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tritonlive.launch.errors import LaunchError
from tritonlive.wire.environment import CACHE_DIR_VARIABLE, CONTROL_KEY_VARIABLE

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command whose other arguments are vLLM's."""
GROUP = "Serve"
NETWORK = "Addresses and ports"
KEYS = "Keys"
PLACES = "Places"
SERVER_PACKAGES = ("filelock", "psutil", "vllm")

Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="PATH_OR_REPO", help="Directory or hub id. [dim]Default: SmolLM2-135M-Instruct[/dim]"
    ),
]
ServedModelName = Annotated[
    str | None, typer.Option("--served-model-name", metavar="NAME", help="What clients call the model.")
]
FastPath = Annotated[
    bool,
    typer.Option(
        "--fast-path/--no-fast-path",
        help="Fill the chunks of streams into templates. Otherwise vLLM builds each, at more processor time.",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        envvar=CACHE_DIR_VARIABLE,
        help="Directory for models and the server's backend. [dim]Default: ~/.cache/tritonlive[/dim]",
        rich_help_panel=PLACES,
    ),
]
TritonServerPath = Annotated[
    Path | None,
    typer.Option(
        "--tritonserver",
        metavar="PATH",
        help="The server binary. [dim]Default: the one on PATH, else in /opt/tritonserver, else the embedded one[/dim]",
        rich_help_panel=PLACES,
    ),
]
KvCacheSpace = Annotated[
    int | None,
    typer.Option("--kv-cache-space", metavar="GIB", min=1, help="KV cache in GiB on a CPU. [dim]Default: 2[/dim]"),
]
TritonHost = Annotated[
    str, typer.Option("--triton-host", metavar="ADDRESS", help="Address Triton listens on.", rich_help_panel=NETWORK)
]
HttpPort = Annotated[int, typer.Option("--triton-http-port", metavar="PORT", min=1, max=65535, rich_help_panel=NETWORK)]
GrpcPort = Annotated[int, typer.Option("--triton-grpc-port", metavar="PORT", min=1, max=65535, rich_help_panel=NETWORK)]
MetricsPort = Annotated[
    int, typer.Option("--triton-metrics-port", metavar="PORT", min=1, max=65535, rich_help_panel=NETWORK)
]
ControlKey = Annotated[
    str | None,
    typer.Option(
        "--control-key",
        metavar="KEY",
        envvar=CONTROL_KEY_VARIABLE,
        help="Key for pausing and changing weights. [dim]Default: serve generates one and shows it once[/dim]",
        rich_help_panel=KEYS,
    ),
]


def vllm_arguments(context: typer.Context) -> tuple[str, ...]:
    """The arguments that are not ours. The first must be an option: a forgotten `--model` is hard to see later."""
    if context.args and not context.args[0].startswith("-"):
        raise typer.BadParameter(f"{context.args[0]!r} is not an option; a model is given as --model {context.args[0]}")
    return tuple(context.args)


def require_server(command: str) -> None:
    """End with the packages to install, where only the trainer's side is installed."""
    if missing := [name for name in SERVER_PACKAGES if importlib.util.find_spec(name) is None]:
        message = (
            f"`tritonlive {command}` needs the server's packages; not installed here: {', '.join(missing)}.\n"
            'On a GPU machine: pip install "tritonlive[server]"\n'
            "On a CPU: pip install --no-deps -r requirements/cpu.txt, from tritonlive's sources (CONTRIBUTING.md)"
        )
        raise typer.Exit(complain(LaunchError(message)))


def complain(error: LaunchError) -> int:
    """Print the error to stderr; returns the exit status."""
    Console(stderr=True).print(f"tritonlive: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 1
