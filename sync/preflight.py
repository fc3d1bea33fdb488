"""Whether a push could work: what stands against it at each replica, before a byte moves."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .addresses import listen
from .check import FittedSource, ServedModel, fit
from .errors import CheckError, ConflictError, ControlError, InvalidError, TransferError
from .sources import WeightSource

# What the server's --weight-transfer-config calls the other end of a backend.
SERVER_BACKENDS = {"nccl": "nccl", "ipc": "cuda_ipc", "gloo": "gloo"}


@dataclass(frozen=True)
class Replica:
    """What one replica says of itself: the answer to `status`, and the tensors it serves."""

    target: str
    status: Mapping[str, Any]
    served: ServedModel | None = None

    @property
    def world_size(self) -> int:
        """Its workers, which all join the group; 0 while it is restarting."""
        return int(self.status.get("world_size", 0))

    @property
    def is_restarting(self) -> bool:
        return self.status["state"] == "restarting"

    def conflict(self, holder: str) -> ControlError | None:
        """Why it could not take a push of `holder` now."""
        state, lease = self.status["state"], (self.status.get("lease") or {}).get("holder")
        if self.is_restarting or (state == "updating" and lease != holder):
            reason = self.status.get("reason") or f"{lease or 'another trainer'} is pushing; try again when it is done"
            return ConflictError(self.target, "status", f"the replica is {state}: {reason}")
        return None

    def misconfiguration(self, backend: str) -> ControlError | None:
        """Why it could never take one over `backend` as it was started."""
        if self.is_restarting:
            return None
        wanted, serves = SERVER_BACKENDS[backend], self.status.get("weight_transfer_backend")
        if serves != wanted:
            config = json.dumps({"backend": wanted})
            fix = f"for backend={backend!r} start the server with --weight-transfer-config '{config}'"
            return InvalidError(self.target, "status", f"weight transfer is {serves or 'off'} there; {fix}")
        if backend == "ipc" and self.world_size != 1:
            return InvalidError(
                self.target,
                "status",
                f"world size is {self.world_size}; with backend='ipc' it must be 1, the worker on the trainer's GPU",
            )
        return None

    def shortage(self, num_bytes: int) -> str | None:
        """Why its host memory does not do for staging an update of `num_bytes` in every worker."""
        free = self.status.get("host_memory_available")
        needed = num_bytes * self.world_size
        if free is None or needed <= free:
            return None
        stage = f"{self.world_size} workers stage {needed / 1e9:.1f} GB"
        return f"host memory: {stage}, {free / 1e9:.1f} GB are available there"


@dataclass(frozen=True)
class Trainer:
    """This end: who it is, and where it would listen."""

    holder: str
    backend: str
    master_address: str
    master_port: int


def require_ready(replicas: Sequence[Replica], trainer: Trainer) -> None:
    """Raises ConflictError or InvalidError when one of them cannot take a push now."""
    for replica in replicas:
        if problem := replica.conflict(trainer.holder) or replica.misconfiguration(trainer.backend):
            raise problem


def require_alike(replicas: Sequence[Replica], weights: WeightSource) -> FittedSource:
    """The tensors to send to all of them. Raises CheckError, or InvalidError when they serve different checkpoints."""
    fitted = [fit(weights, replica.served) for replica in replicas if replica.served is not None]
    if other := _unlike(replicas, fitted):
        raise InvalidError(other.target, "parameters", f"serves another checkpoint than {replicas[0].target}")
    return fitted[0]


def require_all(replicas: Sequence[Replica], weights: WeightSource, trainer: Trainer, *, is_connected: bool) -> None:
    """Everything that stands against a push, in one CheckError."""
    problems = list(_problems(replicas, weights, trainer, is_connected=is_connected))
    if problems:
        raise CheckError(", ".join(replica.target for replica in replicas), problems)


def _problems(
    replicas: Sequence[Replica], weights: WeightSource, trainer: Trainer, *, is_connected: bool
) -> Iterator[str]:
    fitted: list[FittedSource] = []
    for replica in replicas:
        where = f"{replica.target}: " if len(replicas) > 1 else ""
        for error in (replica.conflict(trainer.holder), replica.misconfiguration(trainer.backend)):
            if error is not None:
                yield where + error.message
        if replica.served is None:
            continue
        try:
            fitted.append(fit(weights, replica.served))
        except CheckError as error:
            yield from (where + mismatch for mismatch in error.mismatches)
        else:
            # A connected trainer's workers have their memory already.
            if trainer.backend == "gloo" and not is_connected and (short := replica.shortage(fitted[-1].num_bytes)):
                yield where + short
    if len(fitted) == len(replicas) and (other := _unlike(replicas, fitted)):
        yield f"{other.target} serves another checkpoint than {replicas[0].target}"
    if trainer.backend != "ipc" and not is_connected:
        try:
            listen(trainer.master_address, trainer.master_port).close()
        except TransferError as error:
            yield str(error)


def _unlike(replicas: Sequence[Replica], fitted: Sequence[FittedSource]) -> Replica | None:
    """The first replica that would be sent other tensors than the first."""
    pairs = zip(replicas, fitted, strict=True)
    return next((replica for replica, other in pairs if other.metadata() != fitted[0].metadata()), None)
