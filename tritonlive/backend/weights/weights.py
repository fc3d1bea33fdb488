"""The replica's weights: which version serves, who may change it, and the operations that do.

    serving(v) ──start──► updating(v→w) ──prepare, finish──► serving(w) ──rollback──► serving(v)
        ▲                    │
        └── abort, nothing   └── a failure once loading began ──► dirty ──a full push, reload or rollback──► serving
            loaded yet

A dirty replica does not know what its weights are; a fenced one serves other weights than the rest of its fleet. Both
refuse to generate until an update commits. Operations are serialised; each has a deadline.

An update has an id. It is prepared by every rank of the engine before it is committed, and it commits only if every
rank loads it. What became of an update can be asked for by its id: a trainer whose call was lost need not guess.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from vllm.v1.engine import PauseMode
from vllm.v1.engine.async_llm import AsyncLLM

from sync.weights.checkpoint_files import CheckpointFiles
from sync.worker.served_parameters import merge_answers
from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import BadTensor, Conflict, RequestError
from tritonlive.wire.states import State
from tritonlive.wire.versions import next_version

from .history import History
from .lease import Lease, read_holder
from .replica_state import ReplicaState
from .running_update import RunningUpdate
from .served_versions import Version
from .trainer_watch import TrainerWatch
from .updates import Updates, checkpoint, label_of_reload, label_of_start
from .worker_calls import OPERATION_TIMEOUT_S, Workers

LOCK_TIMEOUT_S = 60.0
RESERVE = "reserve_lease"
# A worker that receives from a trainer which is gone will not come back by itself (NCCL).
STUCK_S = 5.0


class Weights:
    """State machine of one replica's weights; lives on the engine's loop."""

    def __init__(self, engine: Engine, announce: Callable[[str], None]) -> None:
        """`announce` is called with every version that goes live."""
        self.engine = engine
        self.lease = Lease()
        self._workers = Workers(engine)
        self.replica = ReplicaState(engine, self._workers)
        self.updates = Updates(engine, self._workers, self.replica, announce)
        self._announce = announce
        self._timeout_s = OPERATION_TIMEOUT_S  # of the connected trainer's updates
        self._watch = TrainerWatch(self.lease, self._trainer_gone, self._lease_ran_out)
        self._lock = asyncio.Lock()
        self._parameters: dict[str, Any] | None = None
        self._fingerprint: str | None = None  # of the checkpoint's files as the first engine found them
        engine.on_start(self._engine_started)
        engine.on_death(self._engine_died)

    @property
    def state(self) -> State:
        return self.replica.state

    @property
    def history(self) -> History:
        return self.updates.history

    @property
    def backend(self) -> str | None:
        return self.updates.backend

    async def version(self) -> str:
        return await self._workers.version()

    # ---- the trainer ----------------------------------------------------------------------------------------------

    async def reserve(self, init_info: dict[str, Any]) -> None:
        """Give the lease to a trainer, and call no worker yet. Raises Conflict while another trainer holds it.

        A trainer reserves all replicas of a fleet before it forms a group with their workers: those of a group in which
        one is missing wait for it.
        """
        async with self._exclusive():
            await self._take_lease(dict(init_info), RESERVE)

    async def connect(self, init_info: dict[str, Any]) -> None:
        """Join the trainer's group and give it the lease. Raises Conflict while another trainer holds it."""
        init_info = dict(init_info)
        async with self._exclusive():
            await self._take_lease(init_info, "init_weight_transfer_engine")
            # vLLM's own engines know no deadline.
            is_staged = self.updates.is_staged
            timeout_s = init_info.get("timeout_s") if is_staged else init_info.pop("timeout_s", None)
            self._timeout_s = float(timeout_s or OPERATION_TIMEOUT_S)
            self._workers.deadline = time.monotonic() + self._timeout_s
            try:
                await self._workers.run("connect", init_info=init_info)
            except RequestError:
                self._end_lease()
                raise
            finally:
                self._workers.deadline = None
            self.lease.renew()  # forming the group may have taken longer than the lease
            self._watch.start(init_info)

    async def disconnect(self) -> None:
        async with self._exclusive():
            self.updates.refuse_while_running("shutdown_weight_transfer_engine")
            await self._workers.run("disconnect")
            self._end_lease()

    async def evict_trainer(self, reason: str) -> None:
        """Release the trainer, whoever it is; its update, if one is running, is given up."""
        async with self._exclusive():
            await self._release_trainer(reason)

    # ---- an update ------------------------------------------------------------------------------------------------

    async def start(self, update_id: str | None = None, in_flight: PauseMode = "keep") -> str:
        """Begin an update and return its id. Idempotent until the first update_weights, since clients retry.

        in_flight: what becomes of running requests. They go on with the new weights ("keep"; what they hold in the KV
            cache is computed anew, so that no token is made from two sets of weights), are waited for, or aborted. An
            engine that stages does so at the commit; any other one now, before its model is touched.
        """
        async with self._exclusive():
            if (running := self.updates.running) is not None:
                if running.is_announced or update_id not in (None, running.update_id):
                    raise Conflict(f"start_weight_update: update {running.update_id} is running; finish or abort it")
                return running.update_id
            if not self.lease.is_held:
                raise Conflict("start_weight_update: no trainer is connected; call init_weight_transfer_engine first")
            self.replica.require_awake("start_weight_update")
            update = self.updates.begin("push", self.lease.holder, update_id, in_flight, self._timeout_s)
            async with self._release_on_failure(update):
                await self.updates.start(update)
            self.updates.expire(update, self._abort_late)
            return update.update_id

    async def update(self, update_info: dict[str, Any] | list[dict[str, Any]], update_id: str | None = None) -> None:
        async with self._exclusive():
            update = self.updates.require("update_weights", update_id)
            update.is_announced = True
            async with self._release_on_failure(update):
                await self.updates.receive(update, update_info)

    async def prepare(self, update_id: str | None = None) -> dict[str, Any]:
        """Have every rank say whether it can load the update: the first phase of a commit. Nothing is touched.

        Returns `digest` of the tensors staged and `is_unchanged`. When a rank cannot, the update has failed.
        """
        async with self._exclusive():
            update = self.updates.require("prepare_weight_update", update_id)
            async with self._release_on_failure(update):
                await self.updates.prepare(update)
            return {
                "update_id": update.update_id,
                "digest": next(iter(update.digests), None),
                "is_unchanged": update.is_unchanged,
            }

    async def finish(
        self, version: str | None = None, in_flight: PauseMode | None = None, update_id: str | None = None
    ) -> dict[str, Any]:
        """Make the update live: load, set the version and drop what was cached, while generation is paused.

        version: by default "v<n+1>" after the highest that has served: other weights never go by the same name.
        in_flight: as in `start`, for a trainer that says so only now.

        Idempotent: a second finish of the same update answers as the first.
        """
        async with self._exclusive():
            last = self.history.last
            if self.updates.running is None and last is not None and last.is_committed_as(update_id, version):
                return last.result()
            update = self.updates.require("finish_weight_update", update_id)
            update.in_flight = in_flight or update.in_flight
            update.record.stage_s = time.time() - update.record.started_at
            versions = self.updates.versions
            label = version or next_version([versions.serving.label, versions.newest_numbered])
            async with self._release_on_failure(update):
                await self.updates.prepare(update)
                # An unchanged update brings a new name for what the workers hold already.
                return await self.updates.commit(update, Version(label, update.held or update.update_id))

    async def abort(self, reason: str, update_id: str | None = None) -> dict[str, Any]:
        """Give up the running update, and say what became of `update_id`; nothing happens without one.

        After this the update can no longer go live: what is answered is final.
        """
        async with self._exclusive():
            if (update := self.updates.running) is not None and update_id in (None, update.update_id):
                await self._give_up(update, reason)
            return self.updates.outcome(update_id)

    async def fence(self, reason: str, unless_committed: str | None = None) -> dict[str, Any]:
        """Refuse to generate until an update commits: the rest of the fleet serves other weights.

        A running update is given up. With the id of an update that has committed here after all, nothing happens.
        Returns what became of that update.
        """
        async with self._exclusive():
            if unless_committed is None or not self.updates.is_live_or_replaced(unless_committed):
                if self.updates.running is not None:
                    await self._give_up(self.updates.running, reason)
                if self.replica.resting is not State.DIRTY:  # that one says more: what it holds is not known
                    await self.replica.refuse(State.FENCED, reason)
            return self.updates.outcome(unless_committed)

    async def parameters(self) -> dict[str, Any]:
        """The tensors that a push must bring, as the ranks together load them; found out once for each engine."""
        if self._parameters is None:
            async with self._exclusive():
                if self.updates.holds_half_an_update:
                    raise Conflict("parameters: not while weights are being replaced; ask again when it is done")
                statuses = await self._workers.run("parameters")
                self._parameters = merge_answers([status.fields["parameters"] for status in statuses])
        return self._parameters

    # ---- versions at hand -----------------------------------------------------------------------------------------

    async def rollback(
        self, in_flight: PauseMode = "keep", to: str | None = None, update_id: str | None = None
    ) -> dict[str, Any]:
        """Load an earlier version again. Raises Conflict when a rank does not hold it: nothing has changed then.

        to: the version's name; by default the one before, and for a dirty replica the one that it had.
        """
        async with self._exclusive():
            self.updates.refuse_while_running("rollback")
            self.replica.require_awake("rollback")
            target = self.updates.rollback_target(to)
            await self.updates.require_at_every_rank(target)
            update = self.updates.begin("rollback", self.lease.holder, update_id, in_flight, OPERATION_TIMEOUT_S)
            return await self.updates.commit(update, target)

    async def reload(
        self, version: str | None = None, in_flight: PauseMode = "keep", update_id: str | None = None
    ) -> dict[str, Any]:
        """Load the checkpoint from disk again: the way back that needs no trainer.

        version: needed when the files are not those that the engine started with, since the weights are others then.
        """
        async with self._exclusive():
            self.updates.refuse_while_running("reload")
            self.replica.require_awake("reload")
            label = label_of_reload(version, (self._fingerprint, find_fingerprint(self.engine.llm)))
            update = self.updates.begin("reload", self.lease.holder, update_id, in_flight, OPERATION_TIMEOUT_S)
            return await self.updates.commit(update, checkpoint(label))

    async def set_version(self, version: str) -> None:
        """Give the weights that serve another name."""
        async with self._exclusive():
            self.updates.refuse_while_running("update_weight_version")
            await self._workers.set_version(version)
            self.updates.versions.relabel(version)
            self._announce(version)

    # ---- generation -----------------------------------------------------------------------------------------------

    async def pause(self, mode: PauseMode, *, clear_cache: bool) -> None:
        async with self._exclusive():
            if self.updates.holds_half_an_update:  # then the engine is paused, and stays so until `resume`
                self.replica.is_paused = True
            else:
                await self.replica.pause(mode, clear_cache=clear_cache)

    async def resume(self) -> None:
        """Raises Conflict while the model holds half an update."""
        async with self._exclusive():
            if self.updates.holds_half_an_update:
                raise Conflict("resume_generation: not while weights are being replaced; the update's end resumes")
            await self.replica.resume()

    async def reset(self) -> None:
        """Zero the weights: vLLM's weight checker does, to prove that a push writes every tensor."""
        async with self._exclusive():
            self.updates.refuse_while_running("reset_weights")
            self.replica.require_awake("reset_weights")
            await self.replica.refuse(State.DIRTY, "weights were reset to zero")
            await self._workers.run("reset")

    async def sleep(self, level: int, mode: PauseMode) -> None:
        """Give memory back; from level 2 on the weights are lost."""
        async with self._exclusive():
            self.updates.refuse_while_running("sleep")
            if level >= 1:
                await self._workers.run("forget")
            await self.replica.sleep(level, mode)

    async def wake_up(self, tags: list[str] | None) -> bool:
        """Whether the engine is awake as a whole."""
        async with self._exclusive():
            self.updates.refuse_while_running("wake_up")
            return await self.replica.wake_up(tags)

    # ---- the steps of the above -----------------------------------------------------------------------------------

    async def _take_lease(self, init_info: dict[str, Any], operation: str) -> None:
        """Take the lease's fields out of `init_info`, and the lease. Raises Conflict, BadTensor."""
        holder, lease_s, is_anonymous = read_holder(init_info)
        self.lease.check_free_for(holder)
        if self.lease.holder == holder:
            if (
                operation == RESERVE and self.updates.running is not None
            ):  # it has given that one up, and we did not hear
                await self._give_up(self.updates.running, "its trainer begins anew")
            self.updates.refuse_while_running(operation)
        elif self.lease.is_held:
            await self._release_trainer(f"the lease of {self.lease.holder} ran out")
        if self.backend is None:
            raise BadTensor(
                operation, 'weight transfer is off; start vLLM with --weight-transfer-config \'{"backend": "gloo"}\''
            )
        self.lease.take(holder, lease_s, is_anonymous=is_anonymous)
        self._watch.start({})

    @asynccontextmanager
    async def _release_on_failure(self, update: RunningUpdate) -> AsyncIterator[None]:
        """An update that fails ends its trainer's lease: the workers have left its group."""
        try:
            yield
        finally:
            if update.record.outcome in ("failed", "aborted"):
                self._end_lease()

    async def _give_up(self, update: RunningUpdate, reason: str) -> None:
        async with self._release_on_failure(update):
            await self.updates.fail(update, reason, outcome="aborted")

    async def _release_trainer(self, reason: str) -> None:
        if self.updates.running is not None:
            await self._give_up(self.updates.running, reason)
        elif self.lease.is_held:
            self._end_lease()
            if self.engine.is_running:
                await self._workers.ask("disconnect")

    def _end_lease(self) -> None:
        self.lease.release()
        self._watch.stop()

    # ---- what happens by itself -----------------------------------------------------------------------------------

    async def _trainer_gone(self, generation: int, reason: str) -> None:
        await self._release_if(lambda: self.lease.generation == generation, reason)

    async def _lease_ran_out(self, generation: int) -> None:
        # A call of the trainer's may have been under way, and has renewed it.
        reason = f"the lease of {self.lease.holder} ran out"
        await self._release_if(lambda: self.lease.generation == generation and self.lease.left_s == 0, reason)

    async def _release_if(self, is_lost: Callable[[], bool], reason: str) -> None:
        """Release a trainer that is lost. If it left workers in a collective, the engine is started again."""
        is_stuck = self._is_receiving and not self.updates.is_staged
        try:
            async with self._exclusive(timeout_s=STUCK_S if is_stuck else None):
                if is_lost():
                    await self._release_trainer(reason)
        except Conflict:
            if self._is_receiving and is_lost():
                self.engine.kill()

    @property
    def _is_receiving(self) -> bool:
        return self.updates.running is not None and self.updates.running.is_receiving

    async def _abort_late(self, update: RunningUpdate) -> None:
        async with self._exclusive():
            await self._give_up(update, f"not finished within the trainer's own {update.timeout_s:.0f} s")

    async def _engine_started(self, llm: AsyncLLM) -> None:
        """A new engine holds what was on disk; if that is no longer what the first one found, it has another name."""
        found = find_fingerprint(llm)
        if self._fingerprint is None:
            self._fingerprint = found
        label = label_of_start((self._fingerprint, found))
        await llm.update_weight_version(label)
        self.updates.engine_started(label)

    def _engine_died(self, reason: str) -> None:
        self.updates.engine_died(reason)
        self.replica.engine_died()
        self._parameters = None
        self._end_lease()

    @asynccontextmanager
    async def _exclusive(self, timeout_s: float | None = LOCK_TIMEOUT_S) -> AsyncIterator[None]:
        """One operation at a time. Raises Conflict when another one takes longer than `timeout_s` (None: waits)."""
        try:
            await asyncio.wait_for(self._lock.acquire(), timeout_s)
        except TimeoutError:
            raise Conflict(f"weights: another operation has been running for {LOCK_TIMEOUT_S:.0f} s") from None
        try:
            yield
        finally:
            self._lock.release()


def find_fingerprint(llm: AsyncLLM) -> str | None:
    """Of the checkpoint's files as they are now."""
    return CheckpointFiles.find(llm.model_config).fingerprint()
