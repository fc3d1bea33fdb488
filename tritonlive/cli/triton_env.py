"""`tritonlive triton-env`: how to run tritonserver by hand."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from tritonlive.launch.config import MODEL_REPOSITORY, StackConfig, default_cache_dir
from tritonlive.launch.errors import LaunchError
from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE
from tritonlive.wire.keys import split_keys
from tritonlive.wire.ports import TRITON_GRPC_PORT, TRITON_HTTP_PORT, TRITON_METRICS_PORT

from .stack_options import (
    GROUP,
    PASS_THROUGH,
    PLACES,
    ApiKey,
    CacheDir,
    ControlKey,
    GrpcPort,
    HttpPort,
    KvCacheSpace,
    MetricsPort,
    Model,
    NetworkWithoutKey,
    ServedModelName,
    TritonHost,
    TritonHttp,
    TritonHttpHost,
    TritonServerPath,
    complain,
    require_server,
    vllm_arguments,
)

app = typer.Typer()


@app.command(name="triton-env", context_settings=PASS_THROUGH, rich_help_panel=GROUP)
def triton_env(
    context: typer.Context,
    model: Model = None,
    served_model_name: ServedModelName = None,
    model_repository: Annotated[
        Path | None,
        typer.Option(
            "--model-repository",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="A folder that `tritonlive model-repository` wrote. Each model's engine arguments are those of its "
            "model.json, so --model and vLLM's options do not go with it.",
            rich_help_panel=PLACES,
        ),
    ] = None,
    triton_host: TritonHost = "127.0.0.1",
    triton_http_host: TritonHttpHost = "127.0.0.1",
    triton_http: TritonHttp = True,
    allow_network_without_key: NetworkWithoutKey = False,
    triton_http_port: HttpPort = TRITON_HTTP_PORT,
    triton_grpc_port: GrpcPort = TRITON_GRPC_PORT,
    triton_metrics_port: MetricsPort = TRITON_METRICS_PORT,
    api_key: ApiKey = None,
    control_key: ControlKey = None,
    kv_cache_space: KvCacheSpace = None,
    tritonserver_path: TritonServerPath = None,
    cache_dir: CacheDir = None,
) -> None:
    """Print the environment and the command that run tritonserver by hand, to be pasted into a shell.

    The environment is how Triton's Python backend finds this Python and its packages. Keys that are in the environment
    already are not printed. Without a control key, control operations are off.

    [bold]Examples[/bold]

        eval "$(tritonlive triton-env)"

        eval "$(tritonlive triton-env --model-repository ./repository)"
    """
    require_server("triton-env")
    from tritonlive.launch import dtype, tritonserver
    from tritonlive.launch.model_choice import with_model
    from tritonlive.launch.ports import check_addresses

    arguments = vllm_arguments(context)
    if model_repository and (given := [model or "", served_model_name or "", *arguments]) and any(given):
        raise typer.BadParameter(
            "--model-repository takes the engine's arguments from its model.json: leave out --model, "
            "--served-model-name and vLLM's options, or write them there with `tritonlive model-repository`"
        )
    config = StackConfig(
        model=model or "",
        served_model_name=served_model_name,
        extra_args=arguments,
        model_repository=model_repository.resolve() if model_repository else MODEL_REPOSITORY,
        triton_host=triton_host,
        triton_http_host=triton_http_host,
        triton_http=triton_http,
        allow_network_without_key=allow_network_without_key,
        triton_http_port=triton_http_port,
        triton_grpc_port=triton_grpc_port,
        triton_metrics_port=triton_metrics_port,
        api_key=None if api_key == os.environ.get(API_KEY_VARIABLE) else api_key,
        control_key=None if control_key == os.environ.get(CONTROL_KEY_VARIABLE) else control_key,
        kv_cache_space_gib=kv_cache_space,
        tritonserver=tritonserver_path,
        cache_dir=cache_dir or default_cache_dir(),
    )
    note = None
    try:
        check_addresses(config, has_key=bool(split_keys(api_key)))
        if not model_repository:
            config, note = dtype.choose(with_model(config))
        server = tritonserver.find(config.tritonserver, config.cache_dir)
    except LaunchError as error:
        raise typer.Exit(complain(error)) from error
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH")}
    if note:
        typer.echo(f"dtype {note}", err=True)
    for name, value in server.environment(config, inherited).items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    typer.echo(shlex.join(server.command(config)))
