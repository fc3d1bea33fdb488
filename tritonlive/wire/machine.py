"""Which machine a process runs on."""

import platform
from pathlib import Path


def machine_id() -> str:
    """A name of this machine that no other has, until it boots again."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else platform.node()
