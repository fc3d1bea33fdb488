"""Options of the commands that start, or say how to start, a Triton server."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tritonlive.launch import vllm_options
from tritonlive.launch.errors import LaunchError
from tritonlive.launch.exposure import FORCE_OPTION
from tritonlive.wire.environment import API_KEY_VARIABLE, CACHE_DIR_VARIABLE, CONTROL_KEY_VARIABLE

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command whose other arguments are vLLM's."""
GROUP = "Serve"
NETWORK = "Addresses and ports"
KEYS = "Keys"
PLACES = "Places"
USAGE_ERROR = 2
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
IgnoreUnknownFields = Annotated[
    bool,
    typer.Option(
        "--ignore-unknown-fields",
        help="Ignore request fields that have no effect, as vLLM does. Otherwise they are answered 400.",
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
    str,
    typer.Option(
        "--triton-host",
        metavar="ADDRESS",
        help="Address of Triton's gRPC and metrics; 0.0.0.0 for all.",
        rich_help_panel=NETWORK,
    ),
]
TritonHttp = Annotated[
    bool,
    typer.Option("--triton-http/--no-triton-http", help="Give Triton an HTTP port.", rich_help_panel=NETWORK),
]
TritonHttpHost = Annotated[
    str,
    typer.Option(
        "--triton-http-host",
        metavar="ADDRESS",
        help="Address of Triton's HTTP port. A hostile request can crash Triton there, with a key or without one.",
        rich_help_panel=NETWORK,
    ),
]
NetworkWithoutKey = Annotated[
    bool,
    typer.Option(
        FORCE_OPTION,
        help="Listen on an address that other machines reach although there is no --api-key.",
        rich_help_panel=NETWORK,
    ),
]
RustPort = Annotated[
    int | None,
    typer.Option(
        "--rust-port",
        metavar="PORT",
        min=1,
        max=65535,
        help="Port of a second front end, vLLM's own in Rust: inference only, at less than half the processor time. "
        "[dim]Default: none[/dim]",
        rich_help_panel=NETWORK,
    ),
]
HttpPort = Annotated[int, typer.Option("--triton-http-port", metavar="PORT", min=1, max=65535, rich_help_panel=NETWORK)]
GrpcPort = Annotated[int, typer.Option("--triton-grpc-port", metavar="PORT", min=1, max=65535, rich_help_panel=NETWORK)]
MetricsPort = Annotated[
    int, typer.Option("--triton-metrics-port", metavar="PORT", min=1, max=65535, rich_help_panel=NETWORK)
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar=API_KEY_VARIABLE,
        help="Key for inference, at the OpenAI API and at Triton; separate several by commas. "
        "[dim]Default: no key is needed[/dim]",
        rich_help_panel=KEYS,
    ),
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
    """The arguments that are not ours. The first must be an option: a forgotten `--model` is hard to see later.

    Ends the command if vLLM has no such option, with the nearest of its options and ours.
    """
    if context.args and not context.args[0].startswith("-"):
        raise typer.BadParameter(f"{context.args[0]!r} is not an option; a model is given as --model {context.args[0]}")
    try:
        vllm_options.check(context.args, {option for each in context.command.params for option in each.opts})
    except LaunchError as error:
        complain(error)
        raise typer.Exit(USAGE_ERROR) from error
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
