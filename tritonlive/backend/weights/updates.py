"""The life of an update: begun, prepared by every rank, committed if every rank loads it, or failed."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from vllm.v1.engine import PauseMode

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import Conflict, RequestError
from tritonlive.wire.outcomes import CHECKPOINT_ID
from tritonlive.wire.states import State
from tritonlive.wire.versions import FIRST_VERSION

from .history import History
from .replica_state import ReplicaState
from .running_update import RunningUpdate
from .served_versions import ServedVersions, Version
from .versions_at_hand import VersionsAtHand
from .worker_calls import Workers, WorkersFailed, common_versions

# Engines that stage: until an update commits nothing in the model has been touched.
STAGING_BACKENDS = frozenset({"gloo"})
# A load is far faster than that: workers that need longer do not answer at all.
COMMIT_BASE_S, COMMIT_BYTES_PER_S = 60.0, 200e6


class Updates:
    """Runs one update at a time, and knows what became of the last ones. Calls must not overlap."""

    def __init__(
        self, engine: Engine, workers: Workers, replica: ReplicaState, announce: Callable[[str], None]
    ) -> None:
        """`announce` is called with every version that goes live."""
        self.history = History()
        self.versions = ServedVersions()
        self.running: RunningUpdate | None = None
        self._at_hand = VersionsAtHand()
        self._engine = engine
        self._workers = workers
        self._replica = replica
        self._announce = announce
        self._expiry: asyncio.Task[None] | None = None  # ends an update whose trainer hangs

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The versions that every rank could load now, oldest first: name, id, digest (or None)."""
        if self._replica.are_weights_asleep:
            return []
        return self._at_hand.describe(self.versions, self._engine.llm.model_config)

    @property
    def backend(self) -> str | None:
        config = self._engine.llm.vllm_config.weight_transfer_config
        return config.backend if config is not None else None

    @property
    def is_staged(self) -> bool:
        """Whether an update leaves the model alone until it commits."""
        return self.backend in STAGING_BACKENDS

    @property
    def holds_half_an_update(self) -> bool:
        """Whether the model is being replaced right now: it must not generate."""
        return self.running is not None and self.running.is_touched

    def require(self, operation: str, update_id: str | None) -> RunningUpdate:
        """The running update. Raises Conflict when none runs, or another one than the caller means."""
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
        update_id = update_id or secrets.token_hex(8)
        update = RunningUpdate(update_id, self.history.begin(kind, holder, update_id), in_flight, timeout_s)
        self._workers.deadline = update.deadline
        self.running = update
        self._replica.is_updating = True
        return update

    def expire(self, update: RunningUpdate, on_late: Callable[[RunningUpdate], Awaitable[None]]) -> None:
        """Have `on_late` end the update when its trainer has not by its own deadline."""

        async def wait() -> None:
            await asyncio.sleep(update.timeout_s)
            self._expiry = None
            await on_late(update)

        self._expiry = asyncio.create_task(wait())

    async def start(self, update: RunningUpdate) -> None:
        """Have the workers begin. Raises RequestError."""
        try:
            if not self.is_staged:  # it writes into the model as bytes arrive
                await self._workers.pause_scheduler(update.in_flight)
                update.is_touched = True
            await self._workers.run("start")
        except RequestError as error:
            await self.fail(update, f"start_weight_update failed: {error}")
            raise

    async def receive(self, update: RunningUpdate, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Have the workers receive tensors. Raises RequestError."""
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
        """Have every rank say whether it can load the update. Nothing is touched. Raises RequestError."""
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
        """Have every rank load, and serve `version`. When a rank fails, the replica is dirty. Raises RequestError."""
        record = update.record
        record.in_flight = update.in_flight
        # The trainer's deadline is for what it does itself; a load that is cut off would cost the engine its life.
        self._workers.deadline = max(update.deadline, time.monotonic() + commit_timeout_s(record.num_bytes))
        try:
            if update.is_unchanged:
                await self._workers.run("adopt")
            else:
                await self._replace(update, version)
            with record.timed("flush_s"):
                await self._workers.set_version(version.label)
                # A dirty replica may hold these weights beside caches of older ones: a commit failed between the two.
                if not update.is_unchanged or self._replica.resting is State.DIRTY:
                    await self._workers.reset_caches()
        except Exception as error:  # a fault of ours, too, must leave the replica either serving or refusing
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
        finally:  # whatever becomes of the scheduler, this is what serves; nothing ends twice (the engine's death)
            self.history.end(record, "unchanged" if update.is_unchanged else "committed", version.label)
        await self._note_kept()
        return record.result()

    async def fail(self, update: RunningUpdate, reason: str, outcome: str = "failed") -> None:
        """End the update; what the model holds decides between serving on and dirty.

        Not one that has ended already, as by the engine's death: the new engine holds the checkpoint, whole.
        """
        if self.running is not update:
            return
        self._end_running()
        if update.is_touched:  # from now on, not only when the workers have cleaned up
            self._replica.resting, self._replica.reason = State.DIRTY, reason
        version = None
        if self._engine.is_running:
            version = await self._clean_up(update)
        if update.record.outcome != "running":
            return  # the engine died meanwhile
        self.history.end(update.record, outcome, version, reason)
        if update.is_touched:
            await self._replica.refuse(State.DIRTY, reason)
        else:
            await self._replica.resume_unless_paused()

    def is_live(self, update_id: str) -> bool:
        """Whether that update has committed and is what serves: none has since, by the same name or another."""
        last = next((record for record in reversed(self.history.records) if record.is_committed), None)
        if last is None or last.update_id != update_id:
            return False
        return last.weight_version == self.versions.serving.label

    def is_live_or_replaced(self, update_id: str) -> bool:
        """Whether that update is live, or has ended here before another one went live: nobody waits for it any more."""
        ids = [record.update_id for record in self.history.records]
        if update_id not in ids:
            return False
        later = list(self.history.records)[ids.index(update_id) + 1 :]
        return self.is_live(update_id) or any(record.is_committed for record in later)

    def outcome(self, update_id: str | None) -> dict[str, Any]:
        """What became of an update (None: of the last one; its `outcome` is None when it is not known here)."""
        record = self.history.find(update_id) if update_id is not None else self.history.last
        return {
            "state": str(self._replica.state),
            "reason": self._replica.reason,
            "outcome": record.outcome if record is not None else None,
            "is_live": record is not None and self.is_live(record.update_id),
            "result": record.result() if record is not None else None,
            "weight_version": self.versions.serving.label,
        }

    # ---- versions -------------------------------------------------------------------------------------------------

    def rollback_target(self, to: str | None) -> Version:
        """The version named; else the one before, or, where the weights are not known, the one that served last."""
        versions = self.versions
        if to is not None:
            target = versions.find(to)
        else:
            target = versions.serving if self._replica.resting is State.DIRTY else versions.previous
        if target is None:
            at_hand = ", ".join(sorted({each.label for each in (versions.serving, *versions.earlier)}))
            wanted = "no previous version is kept here" if to is None else f"{to!r} is not kept here"
            raise Conflict(f"rollback: {wanted}; there is {at_hand}")
        return target

    async def require_at_every_rank(self, target: Version) -> None:
        """The vote before a rollback. Raises Conflict, with nothing touched, unless every rank holds the version."""
        statuses = await self._workers.run("report")
        if all(status.current == target.update_id for status in statuses):
            return
        if target.update_id not in common_versions(statuses):
            lacking = ", ".join(str(status.rank) for status in statuses if target.update_id not in status.loadable)
            raise Conflict(f"rollback: no previous version is kept here: rank {lacking} has no {target.label!r}")

    # ---- the engine's life ----------------------------------------------------------------------------------------

    def engine_started(self, label: str) -> None:
        """A new engine serves what it found on disk, as `label`."""
        if label != self.versions.serving.label:
            self.versions.restart(label)
            self._announce(label)

    def engine_died(self, reason: str) -> None:
        """Nothing of a running update, and no kept version, is left."""
        if self.history.last is not None:
            self.history.end(self.history.last, "failed", None, reason)
        self.versions.restart(FIRST_VERSION)
        self._at_hand.forget()
        self._announce(FIRST_VERSION)
        self._end_running()

    # ---- steps ----------------------------------------------------------------------------------------------------

    async def _replace(self, update: RunningUpdate, version: Version) -> None:
        record = update.record
        with record.timed("drain_s"):
            if self.is_staged or record.kind != "push":  # any other push stands still since its start
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
                # Ranks that did load hold the new version now, even if the one that failed is untouched.
                has_loaded = any(status.current == version.update_id for status in error.statuses)
                update.is_touched = update.is_touched or error.is_touched or has_loaded
                raise
        update.is_touched = True

    async def _note_kept(self) -> None:
        with suppress(RequestError):  # the next update says it again
            self._at_hand.note(await self._workers.run("report"))

    async def _clean_up(self, update: RunningUpdate) -> str | None:
        """Have the workers forget the update and leave its trainer, so that the next one can connect."""
        operations = ("abort", "disconnect") if update.record.kind == "push" else ("abort",)
        try:
            for operation in operations:  # one that cannot is left to its group's own deadline
                self._at_hand.note(await self._workers.ask(operation))
            return await self._workers.version()
        except RequestError:
            return None

    def _end_running(self) -> None:
        self.running = None
        self._replica.is_updating = False
        self._workers.deadline = None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None


def commit_timeout_s(num_bytes: int) -> float:
    """How long a commit of so many bytes may take before the engine counts as dead."""
    return COMMIT_BASE_S + num_bytes / COMMIT_BYTES_PER_S


def label_of_reload(label: str | None, fingerprints: tuple[str | None, str | None]) -> str:
    """What the checkpoint's weights are called after a reload; the fingerprints are the first engine's, and now.

    Raises Conflict when the files have changed since and nobody says how the weights are to be called.
    """
    first, now = fingerprints
    if label is not None:
        return label
    if first is not None and first != now:
        raise Conflict(
            "reload: the checkpoint's files have changed since the engine started; name these weights: weight_version"
        )
    return FIRST_VERSION


def label_of_start(fingerprints: tuple[str | None, str | None]) -> str:
    """What an engine's checkpoint is called: vLLM's name, unless it is not what the first engine found on disk."""
    first, now = fingerprints
    return FIRST_VERSION if first is None or first == now else f"{FIRST_VERSION}-{(now or 'unknown')[:8]}"


def checkpoint(label: str) -> Version:
    """What is on disk now, by an id of its own: it need not be what an earlier checkpoint's id means."""
    return Version(label, f"{CHECKPOINT_ID}-{secrets.token_hex(4)}")
