"""Models that are built on this machine, each once, and kept in the cache directory."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from .errors import LaunchError


def build_once(target: Path, module: str, arguments: Sequence[str] = ()) -> Path:
    """`target`, made by `python -m module --output DIR arguments…` if it is not there yet.

    A child process builds it, so that the caller need not import torch. A rename publishes it, so that it is never
    incomplete.
    Raises LaunchError with the child's last lines.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if target.is_dir():
            return target
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
            output = Path(temporary) / "model"
            child = subprocess.run(
                [sys.executable, "-m", module, "--output", str(output), *arguments],
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if child.returncode != 0:
                last_lines = "\n".join(child.stdout.splitlines()[-15:])
                raise LaunchError(f"could not build {target.name} ({module}):\n{last_lines}")
            output.rename(target)
    return target
