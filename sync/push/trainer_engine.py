"""The interface of the engines that move a push's bytes: gloo and shared memory, NCCL, CUDA IPC."""

from typing import Protocol

from sync.transport.progress import Progress
from sync.weights.weight_source import WeightSource

from .fleet_update import FleetUpdate


class TrainerEngine(Protocol):
    """A trainer that is connected to all workers of its replicas. One thread sends; any thread may abort."""

    @property
    def transport(self) -> str:
        """How the bytes travel, for a report: "shared memory", "gloo", "nccl" or "ipc"."""
        ...

    def send_weights(self, client: FleetUpdate, source: WeightSource, progress: Progress | None = None) -> None:
        """One update: start, transfer, finish. Raises SyncError."""
        ...

    def shutdown(self) -> None:
        """Leave the group after pushes that succeeded."""
        ...

    def abort(self) -> None:
        """Give up after a failure. Returns at once; nothing commits afterwards."""
        ...
