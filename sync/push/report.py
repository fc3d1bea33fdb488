"""The report of a push."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PushReport:
    """Figures of one push. Times are in seconds, measured by the trainer unless a field says otherwise."""

    version: str
    num_bytes: int
    num_tensors: int
    seconds: float
    connect_s: float
    """Asking the replicas for their status; the first push also forms the group."""
    check_s: float
    transfer_s: float
    """From the start of the update until all workers hold all bytes."""
    commit_s: float
    paused_s: float
    """How long generation was paused, as measured by the replicas; the longest of them."""
    load_s: float
    """The part of `paused_s` in which the workers loaded the weights; the longest of them."""
    targets: tuple[str, ...]
    unchanged: tuple[str, ...] = ()
    """Targets that served exactly these weights before: only their version changed."""
    transport: str = ""
    """How the bytes travelled: "shared memory", "gloo", "nccl" or "ipc"."""
    kept_tensors: int = 0
    """Tensors of the model that a partial push did not replace."""

    def __str__(self) -> str:
        same = f", unchanged at {', '.join(self.unchanged)}" if self.unchanged else ""
        rest = f" ({self.kept_tensors} stay as they were)" if self.kept_tensors else ""
        return (
            f"{self.version} is live at {', '.join(self.targets)}{same}: {self.num_tensors} tensors{rest}, "
            f"{self.num_bytes / 1e6:.1f} MB by {self.transport} in {self.seconds:.2f} s (connect {self.connect_s:.2f}, "
            f"check {self.check_s:.2f}, transfer {self.transfer_s:.2f}, commit {self.commit_s:.2f}); "
            f"generation paused for {self.paused_s:.2f} s"
        )
