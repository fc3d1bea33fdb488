"""The host memory that pushes over gloo need, by machine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

TransportKind = Literal["shared", "broadcast"]
"""How the bytes reach the workers: through shared memory of one machine, or into each worker's own memory."""


@dataclass(frozen=True)
class MachineMemory:
    """The memory that one machine has for its workers' copies of the weights."""

    name: str
    workers: int
    available: float
    """bytes, as the operating system counts them now"""
    held: float = 0
    """bytes of kept versions that a new update replaces; they count as used now"""

    def shortage(self, num_bytes: int, transport: TransportKind, *, keep_previous: bool) -> str | None:
        """Why it has too little for pushes of `num_bytes`; None when it has enough.

        With shared memory each version is one copy on the machine, which all its processes map, the trainer included.
        With broadcasts each version is one copy in every worker.
        """
        copies = 3 if keep_previous else 1
        times = 1 if transport == "shared" else self.workers
        needed = copies * times * num_bytes
        if needed <= self.available + self.held:
            return None
        kinds = "current, previous and staged weights" if keep_previous else "the staged weights"
        by = "in shared memory" if transport == "shared" else f"in each of {times} workers"
        remedy = "; keep_previous=False needs a third of it" if keep_previous else ""
        return (
            f"host memory: {kinds} of {num_bytes / 1e9:.1f} GB {by} take {needed / 1e9:.1f} GB, "
            f"{(self.available + self.held) / 1e9:.1f} GB are available there{remedy}"
        )


def join_machines(machines: Iterable[MachineMemory]) -> list[MachineMemory]:
    """Merge by name: sum of workers and held bytes, minimum of the available bytes."""
    found: dict[str, MachineMemory] = {}
    for each in machines:
        if other := found.get(each.name):
            each = MachineMemory(
                each.name, each.workers + other.workers, min(each.available, other.available), each.held + other.held
            )
        found[each.name] = each
    return list(found.values())
