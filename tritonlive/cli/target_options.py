"""Options of the commands that talk to running servers."""

from pathlib import Path
from typing import Annotated

import typer

from tritonlive.wire.backends import Backend
from tritonlive.wire.environment import CONTROL_KEY_VARIABLE

GROUP = "Weights"
ADAPTERS = "LoRA adapters"

EPILOG = f"""
[bold]A target[/bold] of --to is a front end, http://127.0.0.1:9000, or Triton itself, grpc://127.0.0.1:8001.

[bold]The control key[/bold] comes from {CONTROL_KEY_VARIABLE}, from --control-key, or is part of the target: \
http://user:KEY@host:9000.

[bold]Exit codes[/bold] of pushes: 0 done · 1 failed, nothing changed · 2 wrong usage · 3 the weights do not fit · \
4 control key refused · 5 no server answers · 6 deadline passed · 7 committed at some replicas only · \
130 interrupted, the update was aborted.
"""


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
    typer.Option(metavar="KEY", envvar=CONTROL_KEY_VARIABLE, help="Control key; the variable hides it from `ps`."),
]
Seconds = Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Give up after so long.")]
Transport = Annotated[
    Backend,
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
