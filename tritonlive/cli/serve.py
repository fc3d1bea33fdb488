"""`tritonlive serve`: Triton and the OpenAI API on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from openai_frontend.guards.limits import DEFAULTS
from tritonlive.launch.config import StackConfig, default_cache_dir
from tritonlive.wire.limits import GRAMMAR_DEFAULTS, GrammarDefaults
from tritonlive.wire.ports import FRONT_END_PORT, TRITON_GRPC_PORT, TRITON_HTTP_PORT, TRITON_METRICS_PORT

from .grammar_options import GrammarMaxBytes, GrammarMaxValues, GrammarMemory, GrammarTimeout, to_environment
from .limit_options import (
    BODY_SIZE_MIB,
    HEADER_SIZE_KIB,
    Drain,
    MaxBodySize,
    MaxGenerations,
    MaxHeaderSize,
    MaxN,
    MaxPrompts,
    MaxQueued,
    MaxUnreadTokens,
    ReceiveTimeout,
    frontend_arguments,
    limits,
)
from .stack_options import (
    GROUP,
    NETWORK,
    PASS_THROUGH,
    PLACES,
    ApiKey,
    CacheDir,
    ControlKey,
    FastPath,
    GrpcPort,
    HttpPort,
    IgnoreUnknownFields,
    KvCacheSpace,
    MetricsPort,
    Model,
    NetworkWithoutKey,
    RustPort,
    ServedModelName,
    TritonHost,
    TritonHttp,
    TritonHttpHost,
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
    rust_port: RustPort = None,
    triton_host: TritonHost = "127.0.0.1",
    triton_http_port: HttpPort = TRITON_HTTP_PORT,
    triton_grpc_port: GrpcPort = TRITON_GRPC_PORT,
    triton_metrics_port: MetricsPort = TRITON_METRICS_PORT,
    triton_http_host: TritonHttpHost = "127.0.0.1",
    triton_http: TritonHttp = True,
    allow_network_without_key: NetworkWithoutKey = False,
    api_key: ApiKey = None,
    control_key: ControlKey = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Front-end processes.")] = 1,
    fast_path: FastPath = True,
    max_body_size: MaxBodySize = BODY_SIZE_MIB,
    max_header_size: MaxHeaderSize = HEADER_SIZE_KIB,
    receive_timeout: ReceiveTimeout = DEFAULTS.receive_timeout_s,
    max_n: MaxN = DEFAULTS.max_n,
    max_prompts: MaxPrompts = DEFAULTS.max_prompts,
    max_generations: MaxGenerations = DEFAULTS.max_generations,
    max_queued: MaxQueued = DEFAULTS.max_queued,
    max_unread_tokens: MaxUnreadTokens = DEFAULTS.max_unread_tokens,
    drain: Drain = DEFAULTS.drain_s,
    ignore_unknown_fields: IgnoreUnknownFields = False,
    kv_cache_space: KvCacheSpace = None,
    grammar_timeout: GrammarTimeout = GRAMMAR_DEFAULTS.timeout_s,
    grammar_memory: GrammarMemory = GRAMMAR_DEFAULTS.memory_mib,
    grammar_max_bytes: GrammarMaxBytes = GRAMMAR_DEFAULTS.max_bytes,
    grammar_max_values: GrammarMaxValues = GRAMMAR_DEFAULTS.max_values,
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
    restart: Annotated[
        bool,
        typer.Option(
            "--restart/--no-restart",
            help="Start tritonserver or the front end again when it has failed. Without, the stack ends then, for an "
            "orchestrator to start it again.",
        ),
    ] = True,
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

    grammar_limits = GrammarDefaults(grammar_max_bytes, grammar_max_values, grammar_timeout, grammar_memory)
    chosen = limits(
        max_body_size_mib=max_body_size,
        max_header_size_kib=max_header_size,
        receive_timeout_s=receive_timeout,
        max_n=max_n,
        max_prompts=max_prompts,
        max_generations=max_generations,
        max_queued=max_queued,
        max_unread_tokens=max_unread_tokens,
        drain_s=drain,
    )
    config = StackConfig(
        model=model or "",
        served_model_name=served_model_name,
        extra_args=vllm_arguments(context),
        frontend_args=(
            *(() if fast_path else ("--no-fast-path",)),
            *(("--ignore-unknown-fields",) if ignore_unknown_fields else ()),
            *frontend_arguments(chosen),
        ),
        host=host,
        port=port,
        rust_port=rust_port,
        triton_host=triton_host,
        triton_http_host=triton_http_host,
        triton_http=triton_http,
        allow_network_without_key=allow_network_without_key,
        triton_http_port=triton_http_port,
        triton_grpc_port=triton_grpc_port,
        triton_metrics_port=triton_metrics_port,
        workers=workers,
        api_key=api_key,
        control_key=control_key,
        kv_cache_space_gib=kv_cache_space,
        tritonserver=tritonserver_path,
        cache_dir=cache_dir or default_cache_dir(),
        restart=restart,
        log_dir=log_dir,
        env=to_environment(grammar_limits),
    )
    raise typer.Exit(foreground.run(config, timeout))
