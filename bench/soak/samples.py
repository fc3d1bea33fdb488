"""Memory, descriptors and threads of every process of a stack, over time."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Linux's shared memory, not our temporary files
ROLES = {
    "EngineCore": "engine core",
    "Worker": "worker",
    "triton_python_backend_stub": "stub",
    "openai_frontend": "front end",
    "tritonserver": "tritonserver",
    "resource_tracker": "resource tracker",
    "grammars.compile": "grammar compiler",
    "tritonlive": "launcher",
}
"""Part of a process's title or command line, and what it is; the first that fits."""


@dataclass(frozen=True)
class Sample:
    """One process at one moment. Sizes in MiB."""

    at_s: float
    role: str
    pid: int
    rss_mib: float
    pss_mib: float
    descriptors: int
    threads: int


def role_of(process: psutil.Process) -> str:
    """What the process is, by its command line."""
    command = " ".join(process.cmdline())
    if "triton_python_backend_stub" in command:
        return "stub"
    return next((role for part, role in ROLES.items() if part in command), "other")


def processes(launcher: int) -> Iterator[tuple[str, psutil.Process]]:
    """The launcher's process and all its descendants, with their roles."""
    root = psutil.Process(launcher)
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield "launcher" if process.pid == launcher else role_of(process), process


def take(launcher: int, at_s: float) -> list[Sample]:
    """A sample of every process; one that ends meanwhile is left out."""
    found = []
    for role, process in processes(launcher):
        with suppress(psutil.NoSuchProcess):
            memory = process.memory_full_info()
            sizes = (round(memory.rss / 2**20, 1), round(memory.pss / 2**20, 1))
            found.append(Sample(at_s, role, process.pid, *sizes, process.num_fds(), process.num_threads()))
    return found


def shared_memory_mib() -> float:
    """Size of all files in /dev/shm."""
    total = 0
    for path in SHARED_MEMORY.iterdir():
        with suppress(OSError):
            total += path.stat().st_blocks * 512
    return round(total / 2**20, 1)
