"""Which machine a process runs on, and what runs there."""

import platform
from pathlib import Path

STUB_NAME = "triton_python_backend_stub"
"""Name of the process in which Triton runs a Python model."""
UNBATCHED_NAME = "triton_no_batch"
"""Name that such a process gives itself if its model has no engine, so that the engine's is found by its name."""


def machine_id() -> str:
    """A name of this machine that no other has, until it boots again."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else platform.node()
