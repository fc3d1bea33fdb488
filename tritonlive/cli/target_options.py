"""Options of the commands that talk to running servers."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

GROUP = "Weights"
ADAPTERS = "LoRA adapters"

EPILOG = """
[bold]A target[/bold] of --to is a front end, http://127.0.0.1:9000, or Triton itself, grpc://127.0.0.1:8001.

[bold]The control key[/bold] comes from TRITONLIVE_CONTROL_KEY, from --control-key, or is part of the target: \
http://user:KEY@host:9000.

[bold]Exit codes[/bold] of pushes: 0 done · 1 failed, nothing changed · 2 wrong usage · 3 the weights do not fit · \
4 control key refused · 5 no server answers · 6 deadline passed · 7 committed at some replicas only · \
130 interrupted, the update was aborted.
"""


class BackendName(StrEnum):
    """How the bytes travel."""

    GLOO = "gloo"
    NCCL = "nccl"
    IPC = "ipc"


class InFlight(StrEnum):
    """Handling of running requests at a commit."""

    KEEP = "keep"
    WAIT = "wait"
    ABORT = "abort"


Fleet = Annotated[
    list[str],
    typer.Option("--to", metavar="TARGET", help="http://host:9000 or grpc://host:8001. Repeat it for each replica."),
]
Server = Annotated[str, typer.Option("--to", metavar="TARGET", help="http://host:9000 or grpc://host:8001.")]
Checkpoint = Annotated[
    Path,
    typer.Option(metavar="DIR", exists=True, file_okay=False, help="Hugging Face checkpoint with safetensors files."),
]
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", envvar="TRITONLIVE_CONTROL_KEY", help="Control key; the variable hides it from `ps`."),
]
Seconds = Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Give up after so long.")]
Transport = Annotated[
    BackendName,
    typer.Option(help="Backend of the servers: gloo for CPUs, nccl or ipc for GPUs."),
]
Address = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS", help="Address at which the servers' workers reach this process; it listens only there."
    ),
]
Port = Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="Port on that address; 0 picks a free one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
