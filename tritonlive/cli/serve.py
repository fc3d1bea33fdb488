"""The `tritonlive` command."""

import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import compiler, dtype, tritonserver
from .config import StackConfig, default_cache_dir
from .default_model import NAME as DEFAULT_MODEL_NAME
from .default_model import default_model
from .display import PhaseDisplay, print_ready, ready_lines
from .errors import LaunchError, StackCancelled
from .ports import ReservedPorts
from .stack import Stack

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
NETWORK = "Addresses and ports"
KEYS = "Keys"
PLACES = "Places"
WATCH_S = 0.5

Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="PATH_OR_REPO", help=f"Directory or hub id. [dim]Default: {DEFAULT_MODEL_NAME}[/dim]"
    ),
]
ServedModelName = Annotated[
    str | None, typer.Option("--served-model-name", metavar="NAME", help="What clients call the model.")
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        envvar="TRITONLIVE_CACHE_DIR",
        help="Where models and the server's backend are prepared.",
        rich_help_panel=PLACES,
    ),
]
TritonServerPath = Annotated[
    Path | None,
    typer.Option(
        "--tritonserver",
        metavar="PATH",
        help="The server binary. Default: the one on PATH, else /opt/tritonserver, else the embedded one.",
        rich_help_panel=PLACES,
    ),
]
KvCacheSpace = Annotated[
    int | None,
    typer.Option("--kv-cache-space", metavar="GIB", min=1, help="KV cache in GiB on a CPU. [dim]Default: 2[/dim]"),
]
TritonHost = Annotated[str, typer.Option("--triton-host", help="Address Triton binds.", rich_help_panel=NETWORK)]
HttpPort = Annotated[int, typer.Option("--triton-http-port", min=1, max=65535, rich_help_panel=NETWORK)]
GrpcPort = Annotated[int, typer.Option("--triton-grpc-port", min=1, max=65535, rich_help_panel=NETWORK)]
MetricsPort = Annotated[int, typer.Option("--triton-metrics-port", min=1, max=65535, rich_help_panel=NETWORK)]
ControlKey = Annotated[
    str | None,
    typer.Option(
        "--control-key",
        envvar="TRITONLIVE_CONTROL_KEY",
        help="Needed to pause and to change weights. [dim]Default: made up and shown once[/dim]",
        rich_help_panel=KEYS,
    ),
]


@app.callback()
def tritonlive() -> None:
    """Serve a language model on NVIDIA Triton, with the OpenAI API, and replace its weights while it serves."""


@app.command(context_settings=PASS_THROUGH)
def serve(
    context: typer.Context,
    model: Model = None,
    served_model_name: ServedModelName = None,
    host: Annotated[
        str, typer.Option("--host", help="Address the OpenAI API binds; 0.0.0.0 for all.", rich_help_panel=NETWORK)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="The OpenAI API's.", rich_help_panel=NETWORK)
    ] = 9000,
    triton_host: TritonHost = "127.0.0.1",
    triton_http_port: HttpPort = 8000,
    triton_grpc_port: GrpcPort = 8001,
    triton_metrics_port: MetricsPort = 8002,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="TRITONLIVE_API_KEY",
            help="Needed for inference; several with commas. [dim]Default: none needed[/dim]",
            rich_help_panel=KEYS,
        ),
    ] = None,
    control_key: ControlKey = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Front-end processes.")] = 1,
    kv_cache_space: KvCacheSpace = None,
    tritonserver_path: TritonServerPath = None,
    cache_dir: CacheDir = None,
    log_dir: Annotated[Path | None, typer.Option("--log-dir", rich_help_panel=PLACES)] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", help="How long a start may take.")] = 1800.0,
) -> None:
    """Start Triton and the OpenAI API, wait for a first token, and run until Ctrl-C.

    Every other argument is vLLM's, in the spelling of [bold]vllm serve[/bold], and goes to the engine and to the API.

    [bold]Examples[/bold]

    The model that comes along, on this machine's CPU:

        tritonlive serve

    One of your own, with tool calls, reachable from other machines:

        tritonlive serve --model ./my-checkpoint --served-model-name my-model --max-model-len 4096
            --enable-auto-tool-choice --tool-call-parser hermes --host 0.0.0.0 --api-key "$KEY"

    One from the hub on two GPUs, ready for a trainer's weights over NCCL:

        tritonlive serve --model Qwen/Qwen3-8B --tensor-parallel-size 2 --weight-transfer-config '{"backend": "nccl"}'

    With make, arguments go into ARGS:

        make serve ARGS="--port 9100 --enforce-eager"
    """
    console = Console()
    config = StackConfig(
        model=model or "",
        served_model_name=served_model_name,
        extra_args=_extra(context),
        host=host,
        port=port,
        triton_host=triton_host,
        triton_http_port=triton_http_port,
        triton_grpc_port=triton_grpc_port,
        triton_metrics_port=triton_metrics_port,
        workers=workers,
        api_key=api_key,
        control_key=control_key,
        kv_cache_space_gib=kv_cache_space,
        tritonserver=tritonserver_path,
        cache_dir=cache_dir or default_cache_dir(),
        log_dir=log_dir,
    )
    raise typer.Exit(_run(console, config, timeout))


@app.command(name="triton-env", context_settings=PASS_THROUGH)
def triton_env(
    context: typer.Context,
    model: Model = None,
    served_model_name: ServedModelName = None,
    triton_host: TritonHost = "127.0.0.1",
    triton_http_port: HttpPort = 8000,
    triton_grpc_port: GrpcPort = 8001,
    triton_metrics_port: MetricsPort = 8002,
    control_key: ControlKey = None,
    kv_cache_space: KvCacheSpace = None,
    tritonserver_path: TritonServerPath = None,
    cache_dir: CacheDir = None,
) -> None:
    """Print the environment and the command that run tritonserver by hand, to be pasted into a shell.

    A control key in the environment is left there and not printed; without one, control operations are off.

        eval "$(tritonlive triton-env)"
    """
    config = StackConfig(
        model=model or "",
        served_model_name=served_model_name,
        extra_args=_extra(context),
        triton_host=triton_host,
        triton_http_port=triton_http_port,
        triton_grpc_port=triton_grpc_port,
        triton_metrics_port=triton_metrics_port,
        control_key=None if control_key == os.environ.get("TRITONLIVE_CONTROL_KEY") else control_key,
        kv_cache_space_gib=kv_cache_space,
        tritonserver=tritonserver_path,
        cache_dir=cache_dir or default_cache_dir(),
    )
    try:
        config, dtype_note = dtype.choose(_with_model(config))
        server = tritonserver.find(config.tritonserver, config.cache_dir)
    except LaunchError as error:
        raise typer.Exit(_complain(error)) from error
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH")}
    if dtype_note:
        typer.echo(f"dtype {dtype_note}", err=True)
    for name, value in server.environment(config, inherited).items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    typer.echo(shlex.join(server.command(config)))


def main() -> None:
    """Entry point of the `tritonlive` command."""
    app(prog_name="tritonlive")


def _extra(context: typer.Context) -> tuple[str, ...]:
    """vLLM's arguments; a first one that is no option is a mistake that would be hard to see later."""
    if context.args and not context.args[0].startswith("-"):
        raise typer.BadParameter(f"{context.args[0]!r} is not an option; a model is given as --model {context.args[0]}")
    return tuple(context.args)


def _with_model(config: StackConfig) -> StackConfig:
    """`config` with the default model where none is named, and local paths made absolute."""
    if not config.model:
        name = config.served_model_name or DEFAULT_MODEL_NAME
        # Two first words of its answer to a well-known question are so close that bfloat16's rounding decides.
        chosen = () if dtype.is_named(config.extra_args) else dtype.FLOAT32
        return replace(
            config,
            model=str(default_model(config.cache_dir)),
            served_model_name=name,
            extra_args=(*chosen, *config.extra_args),
        )
    path = Path(config.model).expanduser()
    if path.exists():
        return replace(config, model=str(path.resolve()))
    if config.model.startswith((".", "/", "~")):
        raise LaunchError(f"--model {config.model}: no such directory")
    return config


def _run(console: Console, config: StackConfig, timeout_s: float) -> int:
    """Run the stack until a signal or a death; the exit status."""
    stop = _stop_on_signals()
    display = PhaseDisplay(console)
    try:
        with display:
            ports = ReservedPorts(config)  # before the model is prepared, which takes a while
            config = _with_eager(config, console)
            display.update(f"model {config.model or DEFAULT_MODEL_NAME}")
            config, dtype_note = dtype.choose(_with_model(config))
            stack = Stack(config, ports=ports, progress=display.update, cancel=stop)
        with _stopped_at_the_end(stack, display):
            with display:
                stack.start()
                ready = stack.wait_ready(timeout_s)
            is_made_up = config.control_key is None
            lines = ready_lines(stack, ready, is_control_key_made_up=is_made_up, dtype_note=dtype_note)
            print_ready(console, lines)
            while not stop.wait(WATCH_S):
                stack.check()
    except StackCancelled:
        return 0
    except LaunchError as error:
        return 0 if stop.is_set() else _complain(error)
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def _stopped_at_the_end(stack: Stack, display: PhaseDisplay) -> Iterator[None]:
    """Stop the stack whatever happens, and show it."""
    try:
        yield
    finally:
        with display:
            stack.stop()


def _with_eager(config: StackConfig, console: Console) -> StackConfig:
    """`config` without compilation, if this machine cannot compile."""
    if compiler.EAGER in config.extra_args or not (missing := compiler.missing_packages()):
        return config
    console.print(f"Not compiling the model, so it is slower; to change that: apt-get install {' '.join(missing)}")
    return replace(config, extra_args=(*config.extra_args, compiler.EAGER))


def _stop_on_signals() -> threading.Event:
    """An event that the first SIGINT, SIGTERM or SIGHUP sets; the second one raises KeyboardInterrupt."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)
    return stop


def _complain(error: LaunchError) -> int:
    Console(stderr=True).print(f"tritonlive: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 1
