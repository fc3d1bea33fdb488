"""Pushing to one fleet: connects a trainer engine, sends, commits, and gives up after a failure."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from sync.control.fleet import Fleet
from sync.deadline import Deadline, spawn, wait
from sync.errors import (
    ChangedError,
    ControlError,
    DeadlineError,
    RejectedError,
    SyncError,
    TransferError,
    UnknownOutcomeError,
)
from sync.transport.progress import Progress
from sync.weights.check import FittedSource, ServedModel
from sync.weights.weight_source import WeightSource
from tritonlive.wire.operations.engine import InFlightMode
from tritonlive.wire.versions import next_version

from .caller_stream import CallerStream, StreamOrderedSource
from .fleet_group import FleetGroup, LeaseRequest, WorkerCall
from .fleet_update import FleetUpdate
from .heartbeat import Heartbeat
from .outcome_resolution import RESOLVE_TIMEOUT_S
from .preflight import ReplicaInfo, TrainerInfo, require_alike, require_ready
from .push_context import PushContext
from .report import PushReport
from .rollback import ask_statuses
from .trainer_engine import TrainerEngine

T = TypeVar("T")
# Time to ask a replica whether it has committed, and to fence it.
SETTLE_TIMEOUT_S = 2 * RESOLVE_TIMEOUT_S
# Fields of a status with versions that count when a push is named.
VERSION_FIELDS = ("weight_version", "newest_numbered")


@dataclass(frozen=True)
class PushOptions:
    """The arguments of `WeightSync.push`, apart from the weights."""

    version: str | None = None
    progress: Progress | None = None
    in_flight: InFlightMode = "keep"
    partial: bool = False


class Pusher:
    """One trainer's connection to a fleet, and the pushes over it. Not safe for several threads.

    The first push forms the group with the replicas' workers, and the next pushes reuse it. After any failure the
    update is aborted at every replica and the group torn down; the next push forms a new group.
    """

    def __init__(self, fleet: Fleet, trainer: TrainerInfo, lease_s: float, timeout_s: float) -> None:
        """Connect to nobody yet.

        lease_s: seconds after which replicas release a trainer that is silent.
        timeout_s: longest duration of a push in seconds, which the lease request reports to the replicas.
        """
        self.fleet = fleet
        self._trainer = trainer
        self._lease_s = lease_s
        self._group = FleetGroup(fleet, LeaseRequest(trainer.holder, lease_s, timeout_s))
        self._engine: TrainerEngine | None = None
        self._heartbeat: Heartbeat | None = None
        # Asked for once per group: a replica that restarts with another model leaves the group.
        self._served: list[ServedModel] = []

    @property
    def is_connected(self) -> bool:
        """Whether there is a group with the replicas' workers."""
        return self._engine is not None

    def push(self, weights: WeightSource, options: PushOptions, caller: CallerStream, deadline: Deadline) -> PushReport:
        """Make the weights live at every replica. Raises as `WeightSync.push`.

        A push over a group that turns out to be gone is tried once more, with a new group.
        """
        was_connected = self.is_connected
        try:
            return self._push(weights, options, caller, deadline)
        except (TransferError, ControlError) as error:
            if not was_connected or self.is_connected or isinstance(error, RejectedError | ChangedError):
                raise
        # The last push's group is gone: a replica restarted, or another trainer connected.
        return self._push(weights, options, caller, deadline)

    def ask(self, deadline: Deadline, *, must_be_ready: bool) -> list[ReplicaInfo]:
        """Reports of the replicas. Their tensors are requested once per group.

        Raises ConflictError or InvalidError, with `must_be_ready`, when a replica could not accept a push now.
        """
        targets, statuses = self.fleet.targets, ask_statuses(self.fleet, deadline)
        replicas = [ReplicaInfo(*each) for each in zip(targets, statuses, strict=True)]
        if must_be_ready:
            require_ready(replicas, self._trainer)
        if any(replica.is_restarting for replica in replicas):
            return replicas
        if not self.is_connected or not self._served:
            answers = self.fleet.each("parameters", lambda client, seconds: client.parameters(seconds), deadline)
            self._served = [ServedModel.from_answer(*pair) for pair in zip(targets, answers, strict=True)]
        return [ReplicaInfo(*each) for each in zip(targets, statuses, self._served, strict=True)]

    def leave(self) -> None:
        """Leave the group and release the replicas. They keep serving their current weights."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
            self._group.leave()

    # ---- one push -----------------------------------------------------------------------------------------------

    def _push(
        self, weights: WeightSource, options: PushOptions, caller: CallerStream, deadline: Deadline
    ) -> PushReport:
        began = time.perf_counter()
        replicas = self.ask(deadline, must_be_ready=True)
        context = PushContext(_version_of(replicas, options), options.in_flight, deadline, options.partial)
        update = FleetUpdate(self.fleet, context)
        asked = time.perf_counter()
        fitted = require_alike(replicas, weights, partial=options.partial)
        if self._trainer.backend != "gloo":
            fitted.require_order(self._trainer.backend)
        checked = time.perf_counter()
        try:
            if self._engine is None:
                workers = WorkerCall(self._group, tuple(replica.world_size for replica in replicas), deadline)
                connecting = _spawn(caller, lambda: self._connect(workers, fitted))
                self._engine = wait(connecting, deadline, f"push of {context.version}")
            engine = self._engine
            connected = time.perf_counter()
            ordered = StreamOrderedSource(fitted, caller)
            sending = _spawn(caller, lambda: engine.send_weights(update, ordered, options.progress))
            # A LeadSource has the failure of another rank of this trainer.
            self._await(sending, update, getattr(weights, "failure", None))
            done = time.perf_counter()
        except BaseException as error:
            self._give_up(error, context.update_id)
            raise
        answers = list(update.commits.values())
        return PushReport(
            version=context.version,
            num_bytes=fitted.num_bytes,
            num_tensors=len(fitted.metadata()),
            seconds=done - began,
            connect_s=(asked - began) + (connected - checked),
            check_s=checked - asked,
            transfer_s=done - connected - update.commit_s,
            commit_s=update.commit_s,
            paused_s=max(answer.get("paused_s", 0.0) for answer in answers),
            load_s=max(answer.get("load_s", 0.0) for answer in answers),
            targets=tuple(update.commits),
            unchanged=tuple(target for target, answer in update.commits.items() if not answer.get("is_changed", True)),
            transport=engine.transport,
            kept_tensors=len(fitted.missing),
        )

    def _connect(self, workers: WorkerCall, fitted: FittedSource) -> TrainerEngine:
        """Form the group with the replicas' workers."""
        self._group.reserve(workers.deadline)
        # From now on, since forming the group may take longer than the lease.
        self._heartbeat = Heartbeat(self.fleet.clients, self._lease_s)
        own = self._trainer
        if own.backend == "gloo":
            from sync.transport.trainer.gloo_trainer import GlooTrainer, GlooTrainerInitInfo

            info = GlooTrainerInitInfo(
                own.master_address,
                own.master_port,
                workers.world_size + 1,
                workers.deadline.remaining("connect"),
                keep_previous=own.keep_previous,
                shared_memory=own.shared_memory,
            )
            return GlooTrainer(info, workers)
        from .vllm_trainer import vllm_trainer

        return vllm_trainer(own.backend, own.master_address, own.master_port, workers, fitted)

    def _await(self, sending: "Future[None]", update: FleetUpdate, unless: "Future[None] | None") -> None:
        """Wait for the engine. A commit that is under way at the deadline, or at Ctrl-C, is awaited too.

        Raises UnknownOutcomeError when the commit's outcome is not known even then.

        unless: ends the wait with its error, should it get one.
        """
        context = update.context
        what = f"push of {context.version}"
        try:
            wait(sending, context.deadline, what, unless)
        except (DeadlineError, KeyboardInterrupt) as error:
            if not update.is_committing:
                raise
            try:
                wait(sending, Deadline(SETTLE_TIMEOUT_S), what)
            except DeadlineError:
                unknown = dict.fromkeys(self.fleet.targets, error)
                raise UnknownOutcomeError(context.version, (), {}, unknown) from error
            if isinstance(error, KeyboardInterrupt):
                raise

    def _give_up(self, error: BaseException, update_id: str) -> None:
        engine, self._engine = self._engine, None
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if engine is not None:
            engine.abort()
        reason = str(error) if isinstance(error, SyncError) else type(error).__name__
        for problem in self._group.abort(reason, update_id):
            error.add_note(f"while giving up: {problem}")


def _version_of(replicas: list[ReplicaInfo], options: PushOptions) -> str:
    """The version that the caller gave; else "v<n+1>" after the highest "v<n>" that a replica has served."""
    if options.version is not None:
        return options.version
    reported: list[Any] = [replica.status.get(key) for replica in replicas for key in VERSION_FIELDS]
    return next_version(reported)


def _spawn(caller: CallerStream, call: Callable[[], T]) -> "Future[T]":
    """Run in another thread, so that the deadline and Ctrl-C end the caller's wait whatever the call waits for."""
    return spawn(caller.bound(call), name="weight-sync")
