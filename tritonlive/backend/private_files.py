"""Keeps other users of the machine from what this process creates, and from the memory that brings it requests.

Triton's Python backend hands requests, with their keys, to the model through a region of shared memory. It creates the
region readable for every user, whatever its umask. No request comes before the model has started and changed that.
"""

import os
from pathlib import Path

OWNER_ONLY = 0o600
NOT_OTHERS = 0o077
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Linux's shared memory, not our temporary files
COMMAND_LINE = Path("/proc/self/cmdline")


def keep_private(shared_memory: Path = SHARED_MEMORY, command_line: Path = COMMAND_LINE) -> None:
    """Make this process's region of shared memory, and all files that it will create, its user's alone."""
    os.umask(NOT_OTHERS)
    # The region's name is one of the arguments with which Triton starts its stub, this process.
    for argument in command_line.read_bytes().decode().split("\0"):
        region = shared_memory / argument
        if region.parent == shared_memory and region.is_file():
            region.chmod(OWNER_ONLY)
