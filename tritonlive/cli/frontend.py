"""`tritonlive frontend`, which is also `python -m openai_frontend`: the OpenAI API over running Triton servers."""

import os
from pathlib import Path
from typing import Annotated

import typer

from openai_frontend.guards.limits import DEFAULTS
from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.errors import LaunchError
from tritonlive.launch.exposure import check_exposure
from tritonlive.wire.environment import API_KEY_VARIABLE
from tritonlive.wire.keys import split_keys
from tritonlive.wire.ports import FRONT_END_PORT, TRITON_GRPC_PORT

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
    limits,
)
from .stack_options import (
    GROUP,
    NETWORK,
    PASS_THROUGH,
    PLACES,
    FastPath,
    IgnoreUnknownFields,
    NetworkWithoutKey,
    RustPort,
    complain,
    require_server,
    vllm_arguments,
)

app = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings=PASS_THROUGH, rich_help_panel=GROUP)
def frontend(
    context: typer.Context,
    triton_url: Annotated[
        list[str],
        typer.Option(
            "--triton-url",
            metavar="HOST:PORT",
            help="Triton's gRPC endpoint. Repeat it for each replica, or separate them by commas.",
            rich_help_panel=NETWORK,
        ),
    ] = [f"127.0.0.1:{TRITON_GRPC_PORT}"],  # noqa: B006 - typer copies it
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.", rich_help_panel=NETWORK)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port to listen on.", rich_help_panel=NETWORK)
    ] = FRONT_END_PORT,
    rust_port: RustPort = None,
    rust_binary: Annotated[
        Path | None,
        typer.Option(
            "--rust-binary",
            metavar="PATH",
            help="vLLM's Rust front end, vllm-rs. [dim]Default: the installed one, else it is fetched once[/dim]",
            rich_help_panel=PLACES,
        ),
    ] = None,
    allow_network_without_key: NetworkWithoutKey = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that share the port.")] = 1,
    wait: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", help="How long to wait for Triton. [dim]Default: no limit[/dim]"),
    ] = None,
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
) -> None:
    """Serve the OpenAI API over one or more Triton servers that run tritonlive's model.

    Every other argument is vLLM's, in the spelling of [bold]vllm serve[/bold]: --tool-call-parser, --chat-template,
    --reasoning-parser, … The engine's own arguments come from Triton. Needs no GPU.

    [bold]Environment[/bold]

        TRITONLIVE_API_KEY: keys for inference, separated by commas; without one, inference needs none. The Triton
        servers accept the first one or the control key: start them with the same

        TRITONLIVE_CONTROL_KEY: the key that the Triton servers were started with; without one, control is off

    [bold]Examples[/bold]

        tritonlive frontend --enable-auto-tool-choice --tool-call-parser hermes

        tritonlive frontend --triton-url gpu-1:8001 --triton-url gpu-2:8001
    """
    require_server("frontend")
    try:
        has_key = bool(split_keys(os.environ.get(API_KEY_VARIABLE)))
        check_exposure({"--host": host}, has_key=has_key, is_forced=allow_network_without_key)
    except LaunchError as error:
        raise typer.Exit(complain(error)) from error
    from openai_frontend.rust.port import RustAddress
    from tritonlive.launch.ports import reserve_front_end
    from tritonlive.launch.rust_binary import find_or_fetch

    arguments = list(vllm_arguments(context))
    try:
        _locks = [reserve_front_end(host, port)]  # kept until this process ends
        if rust_port is not None:
            _locks.append(reserve_front_end(host, rust_port, "rust_port"))
            rust_binary = rust_binary or find_or_fetch(
                default_cache_dir(), lambda detail: typer.echo(f"vllm-rs: {detail}")
            )
    except LaunchError as error:
        raise typer.Exit(complain(error)) from error
    from openai_frontend import server

    urls = server.triton_urls(triton_url)
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
    raise typer.Exit(
        server.serve(
            urls,
            arguments,
            host=host,
            port=port,
            workers=workers,
            wait_s=wait,
            use_fast_path=fast_path,
            limits=chosen,
            ignore_unknown_fields=ignore_unknown_fields,
            rust=RustAddress(host, rust_port, rust_binary)
            if rust_port is not None and rust_binary is not None
            else None,
        )
    )
