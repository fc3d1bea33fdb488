"""Memory of a system's processes."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import psutil

from bench.server import Server


@dataclass(frozen=True)
class Memory:
    """Proportional set sizes in MiB: a page that several processes map is divided among them."""

    frontend_pss_mib: float
    pss_mib: float
    """Of all processes, including the front end's."""

    @classmethod
    def of(cls, server: Server) -> Self:
        """Measure the memory of a running server."""
        return cls(pss_mib(server.frontend_processes()), pss_mib(server.processes()))


def pss_mib(processes: Iterable[psutil.Process]) -> float:
    """Sum of the processes that still run."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return round(total / 2**20, 1)
