"""The life of an update: it begins, every rank prepares it, and it commits if every rank loads it, or fails."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import Conflict, RequestError
from tritonlive.backend.vllm_seam.messages import PauseMode
from tritonlive.wire.outcomes import Outcome
from tritonlive.wire.states import State
from tritonlive.wire.versions import FIRST_VERSION

from .history import History
from .loadable_versions import LoadableVersions
from .replica_state import ReplicaState
from .running_update import RunningUpdate
from .served_versions import ServedVersions, Version
from .worker_calls import Workers, WorkersFailed, common_versions

# Backends whose engines stage: the model is untouched until an update commits.
STAGING_BACKENDS = frozenset({"gloo"})


class Updates:
    """Runs one update at a time and records the outcome of the last ones. Calls must not overlap."""

    def __init__(
        self, engine: Engine, workers: Workers, replica: ReplicaState, announce: Callable[[str], None]
    ) -> None:
        """`announce` is called with every version that goes live."""
        self.history = History()
        self.versions = ServedVersions()
        self.running: RunningUpdate | None = None
        self._loadable = LoadableVersions()
        self._engine = engine
        self._workers = workers
        self._replica = replica
        self._announce = announce

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The versions that every rank can load now, oldest first: weight_version, update_id, digest (or None)."""
        if self._replica.are_weights_asleep:
            return []
        return self._loadable.describe(self.versions, self._engine.llm.model_config)

    @property
    def backend(self) -> str | None:
        """Name of the weight transfer engine; None if weight transfer is off."""
        config = self._engine.llm.vllm_config.weight_transfer_config
        return config.backend if config is not None else None

    @property
    def is_staged(self) -> bool:
        """Whether an update leaves the model untouched until it commits."""
        return self.backend in STAGING_BACKENDS

    @property
    def holds_half_an_update(self) -> bool:
        """Whether an update has touched the model and not ended: the model must not generate."""
        return self.running is not None and self.running.is_touched

    def require(self, operation: str, update_id: str | None) -> RunningUpdate:
        """The running update. Raises Conflict when none runs, or when the caller names another one."""
        if self.running is None:
            raise Conflict(
                f"{operation}: no update is running (state: {self._replica.state}); call start_weight_update first"
            )
        self.running.require(update_id, operation)
        return self.running

    def refuse_while_running(self, operation: str) -> None:
        """Raises Conflict while an update runs."""
        if self.running is not None:
            raise Conflict(f"{operation}: not while updating; finish or abort the update first")

    def begin(
        self, kind: str, holder: str | None, update_id: str | None, in_flight: PauseMode, timeout_s: float
    ) -> RunningUpdate:
        """Begin an update of `kind` (push, rollback, reload); the replica's state is "updating" until it ends."""
        update_id = update_id or secrets.token_hex(8)
        update = RunningUpdate(update_id, self.history.begin(kind, holder, update_id), in_flight, timeout_s)
        self._workers.deadline = update.deadline
        self.running = update
        self._replica.is_updating = True
        return update

    async def start(self, update: RunningUpdate) -> None:
        """Start a push at the workers. Raises RequestError."""
        try:
            if not self.is_staged:  # the engine writes into the model as bytes arrive
                await self._workers.pause_scheduler(update.in_flight)
                update.is_touched = True
            await self._workers.run("start")
        except RequestError as error:
            await self.fail(update, f"start_weight_update failed: {error}")
            raise

    async def receive(self, update: RunningUpdate, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Receive tensors at the workers. Raises RequestError."""
        update.is_receiving = True
        try:
            await self._workers.run("update", update_info=update_info)
        except RequestError as error:
            await self.fail(update, f"update_weights failed: {error}")
            raise
        finally:
            update.is_receiving = False
        update.note(update_info)

    async def prepare(self, update: RunningUpdate) -> None:
        """Ask every rank whether it can load the update. Touches nothing. Raises RequestError."""
        if update.prepared is not None:
            return
        try:
            update.prepared = await self._workers.run("prepare")
            if len(update.digests) > 1:
                raise RequestError(f"the ranks have staged different tensors: {sorted(map(str, update.digests))}")
        except RequestError as error:
            await self.fail(update, f"prepare_weight_update failed: {error}")
            raise

    async def commit(self, update: RunningUpdate, version: Version) -> dict[str, Any]:
        """Load at every rank, and serve `version`. If a rank fails, the replica is dirty. Raises RequestError."""
        record = update.record
        record.in_flight = update.in_flight
        self._workers.deadline = update.commit_deadline
        try:
            if update.is_unchanged:
                await self._workers.run("adopt")
            else:
                await self._replace(update, version)
            with record.timed("flush_s"):
                await self._workers.set_version(version.label)
                # A dirty replica may hold these weights and older caches: a commit failed between load and reset.
                if not update.is_unchanged or self._replica.resting is State.DIRTY:
                    await self._workers.reset_caches()
        except Exception as error:  # whatever the fault, the replica must end up serving or refusing
            await self.fail(update, f"{record.kind} failed: {error}")
            raise
        self._end_running()
        if record.kind == "rollback":
            self.versions.restore(version)
        else:
            self.versions.commit(version)
        self._replica.serve()
        self._announce(version.label)
        try:
            with record.timed("flush_s"):
                await self._replica.resume_unless_paused()
        finally:  # the version serves even if resuming fails; if the engine has died, the record has ended already
            self.history.end(record, Outcome.UNCHANGED if update.is_unchanged else Outcome.COMMITTED, version.label)
        await self._note_kept()
        return record.result()

    async def fail(self, update: RunningUpdate, reason: str, outcome: Outcome = Outcome.FAILED) -> None:
        """End the update. The replica continues to serve if the model is untouched; otherwise it is dirty.

        Does nothing if the update has ended already, as by the engine's death: the new engine holds the checkpoint.
        """
        if self.running is not update:
            return
        self._end_running()
        if update.is_touched:  # dirty from now on, before the workers have cleaned up
            self._replica.resting, self._replica.reason = State.DIRTY, reason
        version = None
        if self._engine.is_running:
            version = await self._clean_up(update)
        if update.record.outcome is not Outcome.RUNNING:
            return  # the engine died while the workers cleaned up
        self.history.end(update.record, outcome, version, reason)
        if update.is_touched:
            await self._replica.refuse(State.DIRTY, reason)
        else:
            await self._replica.resume_unless_paused()

    def is_live(self, update_id: str) -> bool:
        """Whether that update has committed and serves: no update has committed since, under any name."""
        last = next((record for record in reversed(self.history.records) if record.is_committed), None)
        if last is None or last.update_id != update_id:
            return False
        return last.weight_version == self.versions.serving.label

    def is_live_or_replaced(self, update_id: str) -> bool:
        """Whether that update is live, or a later one has gone live here: its trainer no longer waits for it."""
        ids = [record.update_id for record in self.history.records]
        if update_id not in ids:
            return False
        later = list(self.history.records)[ids.index(update_id) + 1 :]
        return self.is_live(update_id) or any(record.is_committed for record in later)

    def outcome(self, update_id: str | None) -> dict[str, Any]:
        """The outcome of an update (None: of the last). `outcome` is None for an update that is not known here."""
        record = self.history.find(update_id) if update_id is not None else self.history.last
        return {
            "state": str(self._replica.state),
            "reason": self._replica.reason,
            "outcome": record.outcome if record is not None else None,
            "is_live": record is not None and self.is_live(record.update_id),
            "result": record.result() if record is not None else None,
            "weight_version": self.versions.serving.label,
        }

    # ---- versions ---------------------------------------------------------------------------------------------------

    def rollback_target(self, to: str | None) -> Version:
        """The version named `to`; by default the version before, or for a dirty replica the one that served last."""
        versions = self.versions
        if to is not None:
            target = versions.find(to)
        else:
            target = versions.serving if self._replica.resting is State.DIRTY else versions.previous
        if target is None:
            known = ", ".join(sorted({each.label for each in (versions.serving, *versions.earlier)}))
            wanted = "no previous version is kept here" if to is None else f"{to!r} is not kept here"
            raise Conflict(f"rollback: {wanted}; there is {known}")
        return target

    async def require_at_every_rank(self, target: Version) -> None:
        """Ask all ranks before a rollback; touches nothing. Raises Conflict unless every rank holds the version."""
        statuses = await self._workers.run("report")
        if all(status.current == target.update_id for status in statuses):
            return
        if target.update_id not in common_versions(statuses):
            lacking = ", ".join(str(status.rank) for status in statuses if target.update_id not in status.loadable)
            raise Conflict(f"rollback: no previous version is kept here: rank {lacking} has no {target.label!r}")

    # ---- the engine's life ------------------------------------------------------------------------------------------

    def engine_started(self, label: str) -> None:
        """A new engine serves the checkpoint on disk as `label`."""
        if label != self.versions.serving.label:
            self.versions.restart(label)
            self._announce(label)

    def engine_died(self, reason: str) -> None:
        """The running update and all kept versions are lost."""
        if self.history.last is not None:
            self.history.end(self.history.last, Outcome.FAILED, None, reason)
        self.versions.restart(FIRST_VERSION)
        self._loadable.forget()
        self._announce(FIRST_VERSION)
        self._end_running()

    # ---- steps ------------------------------------------------------------------------------------------------------

    async def _replace(self, update: RunningUpdate, version: Version) -> None:
        record = update.record
        with record.timed("drain_s"):
            if self.is_staged or record.kind != "push":  # any other push has been paused since its start
                await self._workers.pause_scheduler(update.in_flight)
        operations: dict[str, tuple[str, dict[str, Any]]] = {
            "push": ("load", {"update_id": version.update_id, "keep": [self.versions.serving.update_id]}),
            "rollback": ("restore", {"update_id": version.update_id}),
            "reload": ("reload", {"update_id": version.update_id}),
        }
        operation, arguments = operations[record.kind]
        with record.timed("load_s"):
            try:
                await self._workers.run(operation, **arguments)
            except WorkersFailed as error:
                update.note_failed_load(error, version.update_id)
                raise
        update.is_touched = True

    async def _note_kept(self) -> None:
        with suppress(RequestError):  # the next update asks again
            self._loadable.note(await self._workers.run("report"))

    async def _clean_up(self, update: RunningUpdate) -> str | None:
        """Abort at the workers and leave the trainer's group, so that another can connect. Returns the version."""
        operations = ("abort", "disconnect") if update.record.kind == "push" else ("abort",)
        try:
            for operation in operations:  # a worker that fails is released by its group's own deadline
                self._loadable.note(await self._workers.ask(operation))
            return await self._workers.version()
        except RequestError:
            return None

    def _end_running(self) -> None:
        if self.running is not None:
            self.running.cancel_expiry()
        self.running = None
        self._replica.is_updating = False
        self._workers.deadline = None
