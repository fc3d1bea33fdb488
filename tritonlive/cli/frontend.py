"""`tritonlive frontend`, which is also `python -m openai_frontend`: the OpenAI API over running Triton servers."""

from typing import Annotated

import typer

from tritonlive.wire.ports import FRONT_END_PORT, TRITON_GRPC_PORT

from .stack_options import GROUP, NETWORK, PASS_THROUGH, FastPath, require_server, vllm_arguments

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
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that share the port.")] = 1,
    wait: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", help="How long to wait for Triton. [dim]Default: no limit[/dim]"),
    ] = None,
    drain: Annotated[int, typer.Option("--drain", metavar="SECONDS", help="Time for open requests at exit.")] = 10,
    fast_path: FastPath = True,
) -> None:
    """Serve the OpenAI API over one or more Triton servers that run tritonlive's model.

    Every other argument is vLLM's, in the spelling of [bold]vllm serve[/bold]: --tool-call-parser, --chat-template,
    --reasoning-parser, … The engine's own arguments come from Triton. Needs no GPU.

    [bold]Environment[/bold]

        TRITONLIVE_API_KEY: keys for inference, separated by commas; without one, inference needs none

        TRITONLIVE_CONTROL_KEY: the key that the Triton servers were started with; without one, control is off

    [bold]Examples[/bold]

        tritonlive frontend --enable-auto-tool-choice --tool-call-parser hermes

        tritonlive frontend --triton-url gpu-1:8001 --triton-url gpu-2:8001
    """
    require_server("frontend")
    from openai_frontend import server

    arguments = list(vllm_arguments(context))
    urls = server.triton_urls(triton_url)
    raise typer.Exit(
        server.serve(
            urls,
            arguments,
            host=host,
            port=port,
            workers=workers,
            wait_s=wait,
            drain_s=drain,
            use_fast_path=fast_path,
        )
    )
