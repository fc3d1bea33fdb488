"""The checks before a push: every reason why it would fail, found before a byte is sent."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sync.addresses import listen
from sync.errors import CheckError, ConflictError, ControlError, InvalidError, TransferError
from sync.weights.check import FittedSource, ServedModel, fit
from sync.weights.device_source import gpu_problem
from sync.weights.weight_source import WeightSource
from tritonlive.wire.machine import machine_id
from tritonlive.wire.states import State

from .host_memory import MachineMemory, TransportKind, join_machines

# The backend's name in the server's --weight-transfer-config.
SERVER_BACKENDS = {"nccl": "nccl", "ipc": "cuda_ipc", "gloo": "gloo"}


@dataclass(frozen=True)
class ReplicaInfo:
    """Report of one replica: its answer to `status`, and its served tensors."""

    target: str
    status: Mapping[str, Any]
    served: ServedModel | None = None

    @property
    def world_size(self) -> int:
        """Number of its workers, which all join the group; 0 while it restarts."""
        return int(self.status.get("world_size", 0))

    @property
    def is_restarting(self) -> bool:
        return self.status["state"] == State.RESTARTING

    def conflict(self, holder: str) -> ControlError | None:
        """Why it would refuse a push of `holder` now; None when it would not."""
        state, lease = self.status["state"], (self.status.get("lease") or {}).get("holder")
        if self.is_restarting or (state == State.UPDATING and lease != holder):
            reason = self.status.get("reason") or f"{lease or 'another trainer'} is pushing; try again when it is done"
            return ConflictError(self.target, "status", f"the replica is {state}: {reason}")
        return None

    def misconfiguration(self, backend: str) -> ControlError | None:
        """Why it refuses every push over `backend`, as it was started; None when it does not."""
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

    @property
    def machine(self) -> str:
        """The machine it runs on (tritonlive/wire/machine.py); its own address where it does not say."""
        return self.status.get("machine") or self.target

    @property
    def memory(self) -> MachineMemory | None:
        """Its machine's host memory; None when it does not report it."""
        available = self.status.get("host_memory_available")
        if available is None:
            return None
        return MachineMemory(self.machine, self.world_size, available, self.status.get("host_memory_held", 0))

    def shortage(self, num_bytes: int, transport: TransportKind, *, keep_previous: bool) -> str | None:
        """Why its host memory is too small for pushes of `num_bytes`; None when it is not, or is unknown."""
        return self.memory.shortage(num_bytes, transport, keep_previous=keep_previous) if self.memory else None


@dataclass(frozen=True)
class TrainerInfo:
    """This trainer: its name, where it listens, and how it uses host memory (gloo)."""

    holder: str
    backend: str
    master_address: str
    master_port: int
    keep_previous: bool = True
    shared_memory: bool = True
    machine: str = field(default_factory=machine_id)

    def transport(self, replicas: Sequence[ReplicaInfo]) -> TransportKind:
        """How the bytes will travel: through shared memory when every worker is on this machine."""
        is_shared = self.shared_memory and all(replica.machine == self.machine for replica in replicas)
        return "shared" if is_shared else "broadcast"


def require_ready(replicas: Sequence[ReplicaInfo], trainer: TrainerInfo) -> None:
    """Raises ConflictError or InvalidError when a replica would refuse a push now."""
    for replica in replicas:
        if problem := replica.conflict(trainer.holder) or replica.misconfiguration(trainer.backend):
            raise problem


def require_alike(replicas: Sequence[ReplicaInfo], weights: WeightSource, *, partial: bool = False) -> FittedSource:
    """The tensors to send to all replicas. Raises CheckError; InvalidError when they serve different checkpoints."""
    asked = [replica for replica in replicas if replica.served is not None]
    if other := _unlike(asked):
        raise InvalidError(other.target, "parameters", f"serves another checkpoint than {asked[0].target}")
    return fit(weights, _served((asked or replicas)[0]), partial=partial)


def require_all(
    replicas: Sequence[ReplicaInfo],
    weights: WeightSource,
    trainer: TrainerInfo,
    *,
    is_connected: bool,
    partial: bool = False,
) -> None:
    """Raises CheckError with every reason why a push would fail."""
    problems = list(_problems(replicas, weights, trainer, is_connected=is_connected, partial=partial))
    if problems:
        raise CheckError(", ".join(replica.target for replica in replicas), problems)


def _problems(
    replicas: Sequence[ReplicaInfo], weights: WeightSource, trainer: TrainerInfo, *, is_connected: bool, partial: bool
) -> Iterator[str]:
    fits = _Fits(weights, partial=partial)
    num_bytes: int | None = None
    for replica in replicas:
        where = f"{replica.target}: " if len(replicas) > 1 else ""
        for error in (replica.conflict(trainer.holder), replica.misconfiguration(trainer.backend)):
            if error is not None:
                yield where + error.message
        if replica.served is None:
            continue
        try:
            num_bytes = fits.to(replica.served).num_bytes
        except CheckError as error:
            yield from (where + mismatch for mismatch in error.mismatches)
    # The workers of a connected trainer have allocated their memory already.
    if trainer.backend == "gloo" and not is_connected and num_bytes is not None:
        yield from _shortages(replicas, num_bytes, trainer)
    if not fits.failed and (other := _unlike(replicas)):
        yield f"{other.target} serves another checkpoint than {replicas[0].target}"
    if problem := gpu_problem(trainer.backend):
        yield problem
    if trainer.backend != "ipc" and not is_connected:
        try:
            listen(trainer.master_address, trainer.master_port).close()
        except TransferError as error:
            yield str(error)


def _shortages(replicas: Sequence[ReplicaInfo], num_bytes: int, trainer: TrainerInfo) -> Iterator[str]:
    """One line for each machine with too little memory; it names the machine's replicas."""
    transport = trainer.transport(replicas)
    for machine in join_machines(replica.memory for replica in replicas if replica.memory is not None):
        if short := machine.shortage(num_bytes, transport, keep_previous=trainer.keep_previous):
            names = ", ".join(replica.target for replica in replicas if replica.machine == machine.name)
            yield f"{names}: {short}" if len(replicas) > 1 else short


class _Fits:
    """The tensors that a served model takes of the weights, computed once for all replicas that serve the same."""

    def __init__(self, weights: WeightSource, *, partial: bool) -> None:
        self._weights = weights
        self._partial = partial
        self._found: list[tuple[ServedModel, FittedSource | CheckError]] = []

    def to(self, served: ServedModel) -> FittedSource:
        """Raises CheckError."""
        found = next((found for other, found in self._found if other.loads_as(served)), None)
        if found is None:
            try:
                found = fit(self._weights, served, partial=self._partial)
            except CheckError as error:
                found = error
            self._found.append((served, found))
        if isinstance(found, CheckError):
            raise found
        return found

    @property
    def failed(self) -> bool:
        return any(isinstance(found, CheckError) for _, found in self._found)


def _served(replica: ReplicaInfo) -> ServedModel:
    if replica.served is None:
        raise InvalidError(replica.target, "parameters", "the replica did not list its tensors")
    return replica.served


def _unlike(replicas: Sequence[ReplicaInfo]) -> ReplicaInfo | None:
    """The first replica that loads other tensors than the first one; None when all load the same."""
    asked = [replica for replica in replicas if replica.served is not None]
    return next((replica for replica in asked[1:] if not _served(replica).loads_as(_served(asked[0]))), None)
