"""`tritonlive serve`: Triton and the OpenAI API on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from tritonlive.launch.config import StackConfig, default_cache_dir
from tritonlive.wire.environment import API_KEY_VARIABLE
from tritonlive.wire.ports import FRONT_END_PORT, TRITON_GRPC_PORT, TRITON_HTTP_PORT, TRITON_METRICS_PORT

from .stack_options import (
    GROUP,
    KEYS,
    NETWORK,
    PASS_THROUGH,
    PLACES,
    CacheDir,
    ControlKey,
    FastPath,
    GrpcPort,
    HttpPort,
    KvCacheSpace,
    MetricsPort,
    Model,
    ServedModelName,
    TritonHost,
    TritonServerPath,
    require_server,
    vllm_arguments,
)

app = typer.Typer()


@app.command(context_settings=PASS_THROUGH, rich_help_panel=GROUP)
def serve(
    context: typer.Context,
    model: Model = None,
    served_model_name: ServedModelName = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address the OpenAI API listens on; 0.0.0.0 for all.",
            rich_help_panel=NETWORK,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port of the OpenAI API.", rich_help_panel=NETWORK)
    ] = FRONT_END_PORT,
    triton_host: TritonHost = "127.0.0.1",
    triton_http_port: HttpPort = TRITON_HTTP_PORT,
    triton_grpc_port: GrpcPort = TRITON_GRPC_PORT,
    triton_metrics_port: MetricsPort = TRITON_METRICS_PORT,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar=API_KEY_VARIABLE,
            help="Key for inference; separate several by commas. [dim]Default: no key is needed[/dim]",
            rich_help_panel=KEYS,
        ),
    ] = None,
    control_key: ControlKey = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Front-end processes.")] = 1,
    fast_path: FastPath = True,
    kv_cache_space: KvCacheSpace = None,
    tritonserver_path: TritonServerPath = None,
    cache_dir: CacheDir = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(
            "--log-dir",
            metavar="DIR",
            help="[dim]Default: logs/PORT in the cache directory[/dim]",
            rich_help_panel=PLACES,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Time limit of a start.")] = 1800.0,
) -> None:
    """Start Triton and the OpenAI API, wait for a first token, and run until Ctrl-C.

    Every other argument is vLLM's, in the spelling of [bold]vllm serve[/bold], and goes to the engine and to the API.

    [bold]Examples[/bold]

    The default model, on this machine's CPU:

        tritonlive serve

    One of your own, with tool calls, reachable from other machines:

        tritonlive serve --model ./my-checkpoint --served-model-name my-model --max-model-len 4096
            --enable-auto-tool-choice --tool-call-parser hermes --host 0.0.0.0 --api-key "$KEY"

    One from the hub on two GPUs, ready for a trainer's weights over NCCL:

        tritonlive serve --model Qwen/Qwen3-8B --tensor-parallel-size 2 --weight-transfer-config '{"backend": "nccl"}'

    With make, arguments go into ARGS:

        make serve ARGS="--port 9100 --enforce-eager"
    """
    require_server("serve")
    from . import foreground

    config = StackConfig(
        model=model or "",
        served_model_name=served_model_name,
        extra_args=vllm_arguments(context),
        frontend_args=() if fast_path else ("--no-fast-path",),
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
    raise typer.Exit(foreground.run(config, timeout))
