"""What a system holds of the machine's memory."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import psutil

from bench.server import Server


@dataclass(frozen=True)
class Memory:
    """Proportional set sizes in MiB: of a page that several processes map, each has its share."""

    frontend_pss_mib: float
    pss_mib: float
    """Of all processes, the front end's included."""

    @classmethod
    def of(cls, server: Server) -> Self:
        """As it is now."""
        return cls(pss_mib(server.frontend_processes()), pss_mib(server.processes()))


def pss_mib(processes: Iterable[psutil.Process]) -> float:
    """The sum of those that still run."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return round(total / 2**20, 1)
