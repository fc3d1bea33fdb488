"""A replica's weights: the state machine, and the operations that move it.

    serving(v) ──start──► updating(v→w) ──prepare, finish──► serving(w) ──rollback──► serving(v)
        ▲                    │
        └── abort, nothing   └── a failure once loading began ──► dirty ──a full push, reload or rollback──► serving
            loaded yet

A dirty replica does not know its weights. A fenced replica serves other weights than the rest of its fleet. Both refuse
to generate until an update commits. Operations run one at a time, and each has a deadline.

An update has an id. Every rank of the engine prepares it before it is committed, and it commits only if every rank
loads it. A trainer whose call was lost asks for the update's outcome by this id.
"""

import time
from collections.abc import Callable
from typing import Any

from sync.worker.served_parameters import merge_answers
from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import Conflict
from tritonlive.backend.vllm_seam.messages import AsyncLLM, PauseMode
from tritonlive.wire.states import State
from tritonlive.wire.versions import next_version

from .checkpoint_label import CheckpointLabel
from .history import History
from .lease import Lease
from .operation_lock import OperationLock
from .replica_state import ReplicaState
from .served_versions import Version, checkpoint_version
from .trainer_session import TrainerSession
from .updates import Updates
from .worker_calls import OPERATION_TIMEOUT_S, Workers


class Weights:
    """State machine of one replica's weights; lives on the engine's loop.

    Every operation raises Conflict when the state does not allow it, Unavailable when the engine has died, and
    RequestError with the workers' own reasons when they fail.
    """

    def __init__(self, engine: Engine, announce: Callable[[str], None]) -> None:
        """`announce` is called with every version that goes live."""
        self.engine = engine
        self._workers = Workers(engine)
        self.replica = ReplicaState(engine, self._workers)
        self.updates = Updates(engine, self._workers, self.replica, announce)
        self._lock = OperationLock()
        self._trainer = TrainerSession(engine, self._workers, self.updates, self._lock)
        self._announce = announce
        self._checkpoint_label = CheckpointLabel()
        self._parameters: dict[str, Any] | None = None  # of the engine that runs now
        engine.on_start(self._engine_started)
        engine.on_death(self._engine_died)

    @property
    def state(self) -> State:
        return self.replica.state

    @property
    def lease(self) -> Lease:
        return self._trainer.lease

    @property
    def history(self) -> History:
        return self.updates.history

    @property
    def backend(self) -> str | None:
        """Name of the weight transfer engine; None if weight transfer is off."""
        return self.updates.backend

    async def version(self) -> str:
        """The version that the engine reports with its answers."""
        return await self._workers.version()

    # ---- the trainer ------------------------------------------------------------------------------------------------

    async def reserve(self, init_info: dict[str, Any]) -> None:
        """Give the lease to a trainer, without a call to the workers. Raises Conflict while another trainer holds it.

        A trainer reserves all replicas of a fleet before it forms a group with their workers: the workers of a group
        with a missing member would wait for it.
        """
        async with self._lock.exclusive():
            await self._trainer.take_lease(dict(init_info), "reserve_lease", begins_anew=True)

    async def connect(self, init_info: dict[str, Any]) -> None:
        """Give the lease to a trainer and join its group. Raises Conflict while another trainer holds the lease."""
        init_info = dict(init_info)
        async with self._lock.exclusive():
            await self._trainer.take_lease(init_info, "init_weight_transfer_engine")
            await self._trainer.join(init_info)

    async def disconnect(self) -> None:
        """Leave the trainer's group and end its lease."""
        async with self._lock.exclusive():
            self.updates.refuse_while_running("shutdown_weight_transfer_engine")
            await self._workers.run("disconnect")
            self._trainer.end()

    async def evict_trainer(self, reason: str) -> None:
        """Release any connected trainer. Its running update is aborted."""
        async with self._lock.exclusive():
            await self._trainer.release(reason)

    # ---- an update --------------------------------------------------------------------------------------------------

    async def start(self, update_id: str | None = None, in_flight: PauseMode = "keep") -> str:
        """Begin an update and return its id. Idempotent until the first update_weights, since clients retry.

        in_flight: what happens to running requests. "keep": they continue with the new weights, and their KV cache is
            computed anew, so that no token is made from two sets of weights. "wait": the update waits for them.
            "abort": they end. An engine that stages does this at the commit, any other engine now, before its model is
            touched.
        """
        async with self._lock.exclusive():
            if (running := self.updates.running) is not None:
                if running.is_announced or update_id not in (None, running.update_id):
                    raise Conflict(f"start_weight_update: update {running.update_id} is running; finish or abort it")
                return running.update_id
            if not self.lease.is_held:
                raise Conflict("start_weight_update: no trainer is connected; call init_weight_transfer_engine first")
            self.replica.require_awake("start_weight_update")
            update = self.updates.begin("push", self.lease.holder, update_id, in_flight, self._trainer.timeout_s)
            async with self._trainer.ends_on_failure(update):
                await self.updates.start(update)
            update.expire(self._trainer.abort_expired)
            return update.update_id

    async def update(self, update_info: dict[str, Any] | list[dict[str, Any]], update_id: str | None = None) -> None:
        """Receive the tensors that `update_info` announces: names, dtype_names, shapes, and fields of the backend."""
        async with self._lock.exclusive():
            update = self.updates.require("update_weights", update_id)
            update.is_announced = True
            async with self._trainer.ends_on_failure(update):
                await self.updates.receive(update, update_info)

    async def prepare(self, update_id: str | None = None) -> dict[str, Any]:
        """Ask every rank whether it can load the update: the first phase of a commit. Touches nothing.

        Returns `update_id`, the `digest` of the staged tensors, and `is_unchanged`. If a rank cannot, the update fails.
        """
        async with self._lock.exclusive():
            update = self.updates.require("prepare_weight_update", update_id)
            async with self._trainer.ends_on_failure(update):
                await self.updates.prepare(update)
            return {
                "update_id": update.update_id,
                "digest": next(iter(update.digests), None),
                "is_unchanged": update.is_unchanged,
            }

    async def finish(
        self, version: str | None = None, in_flight: PauseMode | None = None, update_id: str | None = None
    ) -> dict[str, Any]:
        """Commit the update: pause generation, load, set the version, reset the caches, resume.

        version: by default "v<n+1>" after the highest that has served, so that no name ever means two sets of weights.
        in_flight: as in `start`, for a trainer that decides only now.

        Idempotent: a second finish of the same update returns the same result.
        """
        async with self._lock.exclusive():
            last = self.history.last
            if self.updates.running is None and last is not None and last.is_committed_as(update_id, version):
                return last.result()
            update = self.updates.require("finish_weight_update", update_id)
            update.in_flight = in_flight or update.in_flight
            update.record.stage_s = time.time() - update.record.started_at
            versions = self.updates.versions
            label = version or next_version([versions.serving.label, versions.newest_numbered])
            async with self._trainer.ends_on_failure(update):
                await self.updates.prepare(update)
                # An unchanged update brings a new name for tensors that the workers already hold.
                return await self.updates.commit(update, Version(label, update.held_id or update.update_id))

    async def abort(self, reason: str, update_id: str | None = None) -> dict[str, Any]:
        """Abort the running update, if there is one, and return the outcome of `update_id`.

        The update cannot go live afterwards: the answer is final.
        """
        async with self._lock.exclusive():
            if (update := self.updates.running) is not None and update_id in (None, update.update_id):
                await self._trainer.abort(update, reason)
            return self.updates.outcome(update_id)

    async def fence(self, reason: str, unless_committed: str | None = None) -> dict[str, Any]:
        """Refuse to generate until an update commits: the rest of the fleet serves other weights.

        Aborts a running update. Nothing happens if the update with the id `unless_committed` is live here, or was
        replaced by a later one. Returns that update's outcome.
        """
        async with self._lock.exclusive():
            if unless_committed is None or not self.updates.is_live_or_replaced(unless_committed):
                if self.updates.running is not None:
                    await self._trainer.abort(self.updates.running, reason)
                if self.replica.resting is not State.DIRTY:  # dirty is the stronger statement: it stays
                    await self.replica.refuse(State.FENCED, reason)
            return self.updates.outcome(unless_committed)

    async def parameters(self) -> dict[str, Any]:
        """The tensors that a push must bring, as all ranks together load them. Asked once for each engine."""
        if self._parameters is None:
            async with self._lock.exclusive():
                if self.updates.holds_half_an_update:
                    raise Conflict("parameters: not while weights are being replaced; ask again when it is done")
                statuses = await self._workers.run("parameters")
                self._parameters = merge_answers([status.fields["parameters"] for status in statuses])
        return self._parameters

    # ---- earlier versions -------------------------------------------------------------------------------------------

    async def rollback(
        self, in_flight: PauseMode = "keep", to: str | None = None, update_id: str | None = None
    ) -> dict[str, Any]:
        """Load an earlier version again. Raises Conflict, with nothing changed, when a rank does not hold it.

        to: the version's name. By default the version before; for a dirty replica the version that it served last.
        """
        async with self._lock.exclusive():
            self.updates.refuse_while_running("rollback")
            self.replica.require_awake("rollback")
            target = self.updates.rollback_target(to)
            await self.updates.require_at_every_rank(target)
            update = self.updates.begin("rollback", self.lease.holder, update_id, in_flight, OPERATION_TIMEOUT_S)
            return await self.updates.commit(update, target)

    async def reload(
        self, version: str | None = None, in_flight: PauseMode = "keep", update_id: str | None = None
    ) -> dict[str, Any]:
        """Load the checkpoint from disk again; needs no trainer.

        version: required when the files are not those that the first engine found, since they hold other weights.
        """
        async with self._lock.exclusive():
            self.updates.refuse_while_running("reload")
            self.replica.require_awake("reload")
            label = self._checkpoint_label.at_reload(version, self.engine.llm.model_config)
            update = self.updates.begin("reload", self.lease.holder, update_id, in_flight, OPERATION_TIMEOUT_S)
            return await self.updates.commit(update, checkpoint_version(label))

    async def set_version(self, version: str) -> None:
        """Rename the weights that serve."""
        async with self._lock.exclusive():
            self.updates.refuse_while_running("update_weight_version")
            await self._workers.set_version(version)
            self.updates.versions.relabel(version)
            self._announce(version)

    # ---- generation -------------------------------------------------------------------------------------------------

    async def pause(self, mode: PauseMode, *, clear_cache: bool) -> None:
        """Pause generation for a client, until `resume`."""
        async with self._lock.exclusive():
            if self.updates.holds_half_an_update:  # the engine is paused already, and now stays so until `resume`
                self.replica.is_paused = True
            else:
                await self.replica.pause(mode, clear_cache=clear_cache)

    async def resume(self) -> None:
        """End a client's pause. Raises Conflict while the model holds half an update."""
        async with self._lock.exclusive():
            if self.updates.holds_half_an_update:
                raise Conflict("resume_generation: not while weights are being replaced; the update's end resumes")
            await self.replica.resume()

    async def reset(self) -> None:
        """Zero the weights. vLLM's weight checker uses this to prove that a push writes every tensor."""
        async with self._lock.exclusive():
            self.updates.refuse_while_running("reset_weights")
            self.replica.require_awake("reset_weights")
            await self.replica.refuse(State.DIRTY, "weights were reset to zero")
            await self._workers.run("reset")

    async def sleep(self, level: int, mode: PauseMode) -> None:
        """Give memory back. From level 2 on the weights are lost."""
        async with self._lock.exclusive():
            self.updates.refuse_while_running("sleep")
            if level >= 1:
                await self._workers.run("forget")
            await self.replica.sleep(level, mode)

    async def wake_up(self, tags: list[str] | None) -> bool:
        """Take memory back, of the kinds in `tags` or all. Returns whether the whole engine is awake."""
        async with self._lock.exclusive():
            self.updates.refuse_while_running("wake_up")
            return await self.replica.wake_up(tags)

    # ---- the engine's life ------------------------------------------------------------------------------------------

    async def _engine_started(self, llm: AsyncLLM) -> None:
        """Label the weights that a new engine has read from disk."""
        label = self._checkpoint_label.at_start(llm.model_config)
        await llm.update_weight_version(label)
        self.updates.engine_started(label)

    def _engine_died(self, reason: str) -> None:
        self.updates.engine_died(reason)
        self.replica.engine_died()
        self._parameters = None
        self._trainer.end()
