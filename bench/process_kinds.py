"""Processor time of a system's processes by kind: what each process does for a token."""

from collections.abc import Iterable
from contextlib import suppress

import psutil

from tritonlive.wire.machine import STUB_NAME, UNBATCHED_NAME

FRONT_END = "front end"
"""A Python process that serves HTTP: ours, or vLLM's API server."""
BRIDGE = "bridge"
"""The process between `vllm-rs` and Triton."""
VLLM_RS = "vllm-rs"
TRITON = "tritonserver"
MODEL = "model"
"""The processes in which Triton runs Python models."""
ENGINE = "engine"
"""vLLM's engine core and its workers. They poll for a second after their last work."""
OTHER = "other"
"""Launchers, the compiler of grammars, and other processes without a part in a request."""
KINDS = (FRONT_END, BRIDGE, VLLM_RS, TRITON, MODEL, ENGINE, OTHER)
SERVING = (FRONT_END, BRIDGE, VLLM_RS, TRITON, MODEL)
"""Kinds between the client and the engine."""

MODULES = {
    "openai_frontend": FRONT_END,
    "bench.fast_path.frontend": FRONT_END,
    "vllm.entrypoints.launchers.api_server.entry": FRONT_END,
    "openai_frontend.rust": BRIDGE,
}
"""Kinds of Python processes by the module that they run."""
TITLES = ("VLLM::EngineCore", "VLLM::Worker")
"""Titles that vLLM gives its processes."""


def kind_of(name: str, command: list[str]) -> str:
    """Kind of a process with that name and command line."""
    if command and command[0].startswith(TITLES):
        return ENGINE
    if name == VLLM_RS:
        return VLLM_RS
    if name == TRITON:
        return TRITON
    # Linux keeps the first 15 characters of a name.
    if name in (STUB_NAME, STUB_NAME[:15], UNBATCHED_NAME[:15]):
        return MODEL
    return MODULES.get(_module(command), OTHER)


class CpuTimes:
    """Processor time of some processes from now on."""

    def __init__(self, processes: Iterable[psutil.Process]) -> None:
        self._kinds: dict[psutil.Process, str] = {}
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                self._kinds[process] = kind_of(process.name(), process.cmdline())
        self._before = {process: _seconds(process) for process in self._kinds}

    def by_kind(self) -> dict[str, float]:
        """Seconds (user + system) of each kind until now. A process that has ended meanwhile is not counted."""
        spent: dict[str, float] = {}
        for process, kind in self._kinds.items():
            with suppress(psutil.NoSuchProcess):
                spent[kind] = spent.get(kind, 0.0) + _seconds(process) - self._before[process]
        return spent


def _module(command: list[str]) -> str:
    """The module of `python -m MODULE`; empty for another command."""
    return command[command.index("-m") + 1] if "-m" in command[:-1] else ""


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
