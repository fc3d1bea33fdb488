"""`tritonlive push | check | rollback | reload`: change what running servers serve."""

from typing import Annotated

import typer

from tritonlive.wire.operations.engine import InFlightMode

from .reporting import opened, progress_bar, reported, say, show
from .target_options import (
    GROUP,
    Address,
    Checkpoint,
    Fleet,
    Json,
    Key,
    Port,
    Seconds,
    Transport,
)

app = typer.Typer()


@app.command(rich_help_panel=GROUP)
def push(
    to: Fleet,
    checkpoint: Checkpoint,
    version: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Version that responses report. [dim]Default: v1, v2, …[/dim]"),
    ] = None,
    backend: Transport = "gloo",
    control_key: Key = None,
    timeout: Seconds = 300.0,
    master_address: Address = "127.0.0.1",
    master_port: Port = 0,
    in_flight: Annotated[
        InFlightMode,
        typer.Option(help="Running requests continue with the new weights, are waited for, or are aborted."),
    ] = "keep",
    partial: Annotated[
        bool, typer.Option("--partial", help="Push only the checkpoint's tensors; others stay as pushed before.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Push a checkpoint from disk while the servers keep answering.

    With nccl and ipc each tensor goes to this process's GPU first, one at a time. Without a GPU use gloo.

    [bold]Example[/bold]

        tritonlive push --to http://127.0.0.1:9000 --checkpoint ./my-model --version step-100
    """
    from sync.weights.device_source import require_gpu

    listens = {"master_address": master_address, "master_port": master_port}
    with reported():
        require_gpu(backend)
    with opened(to, control_key, timeout, backend=backend, **listens) as client, progress_bar() as progress:
        report = client.push(checkpoint, version, progress=progress, in_flight=in_flight, partial=partial)
    show(report, as_json=as_json)


@app.command(rich_help_panel=GROUP)
def check(
    to: Fleet,
    checkpoint: Checkpoint,
    backend: Transport = "gloo",
    control_key: Key = None,
    timeout: Seconds = 60.0,
    master_address: Address = "127.0.0.1",
    master_port: Port = 0,
) -> None:
    """Check whether a push of this checkpoint would work, and list everything against it. Changes nothing.

    Checks names, shapes and dtypes; the servers' state, transport, world size and memory; the port to listen on.

    [bold]Example[/bold]

        tritonlive check --to http://127.0.0.1:9000 --checkpoint ./my-model
    """
    listens = {"master_address": master_address, "master_port": master_port}
    with opened(to, control_key, timeout, backend=backend, **listens) as client:
        client.check(checkpoint)
    say("The weights fit.")


@app.command(rich_help_panel=GROUP)
def rollback(
    to: Fleet,
    version: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The version to serve. [dim]Default: the one before the current[/dim]"),
    ] = None,
    backend: Transport = "gloo",
    control_key: Key = None,
    timeout: Seconds = 300.0,
) -> None:
    """Serve an earlier version that the servers still hold; `status` lists them as kept_versions.

    [bold]Example[/bold]

        tritonlive rollback --to http://127.0.0.1:9000 --version step-99
    """
    with opened(to, control_key, timeout, backend=backend) as client:
        version = client.rollback(version)
    say(f"{version} serves again.")


@app.command(rich_help_panel=GROUP)
def reload(
    to: Fleet,
    version: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of these weights; required when the files have changed."),
    ] = None,
    control_key: Key = None,
    timeout: Seconds = 300.0,
) -> None:
    """Serve the checkpoint on the servers' disks again. Needs no trainer.

    [bold]Example[/bold]

        tritonlive reload --to http://127.0.0.1:9000
    """
    with opened(to, control_key, timeout) as client:
        version = client.reload(version)
    say(f"{version} serves again.")
