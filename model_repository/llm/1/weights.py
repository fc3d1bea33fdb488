"""The replica's weights: which version serves, and the life of an update.

    serving(v) ──start──► updating(v→w) ──finish──► serving(w) ──rollback──► serving(v)
        ▲                    │
        └── abort, nothing   └── a failure once loading began ──► dirty ──a full update commits──► serving(w)
            loaded yet

A dirty replica has weights partly replaced; a fenced one serves other weights than the rest of its fleet. Both refuse
to generate until an update commits. Operations are serialised; each has a deadline.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

from vllm.v1.engine import PauseMode

from .engine import Engine
from .history import FIRST_VERSION, History, Record, size_of
from .lease import Lease, read_holder
from .tensors import BadTensor, Conflict, RequestError, Unavailable
from .trainer_watch import TrainerWatch
from .worker_calls import OPERATION_TIMEOUT_S, Workers

LOCK_TIMEOUT_S = 60.0
# Engines that stage: until finish is called nothing in the model has been touched.
STAGING_BACKENDS = frozenset({"gloo"})
# What such an engine's error says when it failed before it loaded anything (see sync/gloo_worker.py).
UNTOUCHED = "the model is untouched"
# A worker that receives from a trainer which is gone will not come back by itself (NCCL).
STUCK_S = 5.0


class State(StrEnum):
    SERVING = "serving"
    UPDATING = "updating"
    DIRTY = "dirty"
    FENCED = "fenced"


REFUSING = frozenset({State.DIRTY, State.FENCED})


class Weights:
    """State machine of one replica's weights; lives on the engine's loop."""

    def __init__(self, engine: Engine, announce: Callable[[str], None]) -> None:
        """`announce` is called with every version that goes live."""
        self.engine = engine
        self.lease = Lease()
        self.history = History()
        self.state = State.SERVING
        self.reason: str | None = None
        self.is_paused = False
        self._workers = Workers(engine)
        self._announce = announce
        self._previous: str | None = None  # the version a rollback goes back to
        self._keeps_previous = True
        self._resting: tuple[State, str | None] = (State.SERVING, None)  # state and reason before the running update
        self._is_touched = False  # whether the running update may have changed the model
        self._is_receiving = False  # whether workers are busy with tensors
        self._timeout_s = OPERATION_TIMEOUT_S  # from start to finish, as the trainer asked
        self._watch = TrainerWatch(self.lease, self._trainer_gone, self._lease_ran_out)
        self._expiry: asyncio.Task[None] | None = None  # ends an update whose trainer hangs
        self._lock = asyncio.Lock()
        engine.on_death(self._engine_died)

    @property
    def backend(self) -> str | None:
        config = self.engine.llm.vllm_config.weight_transfer_config
        return config.backend if config is not None else None

    async def version(self) -> str:
        return await self._workers.version()

    def check_can_generate(self) -> None:
        """Raises Unavailable when what would be generated could not be trusted."""
        if self.state in REFUSING:
            raise Unavailable(f"weights: {self.state} ({self.reason}); push a full set of weights")

    # ---- the trainer ----------------------------------------------------------------------------------------------

    async def connect(self, init_info: dict[str, Any]) -> None:
        """Join the trainer's group and give it the lease. Raises Conflict while another trainer holds it."""
        init_info = dict(init_info)
        holder, lease_s, is_anonymous = read_holder(init_info)
        async with self._exclusive():
            self.lease.check_free_for(holder)
            if self.lease.holder == holder:
                self._refuse_while(State.UPDATING, "init_weight_transfer_engine")
            elif self.lease.is_held:
                await self._let_go(f"the lease of {self.lease.holder} ran out")
            if self.backend is None:
                raise BadTensor(
                    "init_weight_transfer_engine",
                    'weight transfer is off; start vLLM with --weight-transfer-config \'{"backend": "gloo"}\'',
                )
            is_staged = self.backend in STAGING_BACKENDS
            # vLLM's own engines know no deadline.
            timeout_s = init_info.get("timeout_s") if is_staged else init_info.pop("timeout_s", None)
            self._timeout_s = float(timeout_s or OPERATION_TIMEOUT_S)
            self._workers.deadline = time.monotonic() + self._timeout_s
            try:
                await self._workers.connect(init_info)
            finally:
                self._workers.deadline = None
            self.lease.take(holder, lease_s, is_anonymous=is_anonymous)
            self._keeps_previous = is_staged and init_info.get("keep_previous", True)
            self._watch.start(init_info)

    async def disconnect(self) -> None:
        async with self._exclusive():
            self._refuse_while(State.UPDATING, "shutdown_weight_transfer_engine")
            await self._workers.disconnect()
            self._end_lease()

    async def force_out(self, reason: str) -> None:
        """Let go of the trainer, whoever it is; its update, if one is running, is given up."""
        async with self._exclusive():
            await self._let_go(reason)

    # ---- an update ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin an update. Idempotent until the first update_weights, since clients retry."""
        async with self._exclusive():
            if self.state is State.UPDATING:
                if self._is_touched:
                    raise Conflict("start_weight_update: an update is running; finish or abort it")
                return
            if not self.lease.is_held:
                raise Conflict("start_weight_update: no trainer is connected; call init_weight_transfer_engine first")
            self._begin_update(may_touch=self.backend not in STAGING_BACKENDS)
            record = self.history.begin("push", self.lease.holder)
            try:
                if self._is_touched:  # an engine that writes into the model as bytes arrive must not generate meanwhile
                    await self._workers.stand_still("keep")
                await self._workers.start()
            except RequestError as error:
                await self._fail(record, f"start_weight_update failed: {error}")
                raise
            self.state = State.UPDATING
            self._expiry = asyncio.create_task(self._abort_when_late(record))

    async def update(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        async with self._exclusive():
            record = self._running_update("update_weights")
            self._is_receiving = True
            try:
                await self._workers.update(update_info)
            except RequestError as error:
                await self._fail(record, f"update_weights failed: {error}")
                raise
            finally:
                self._is_receiving = False
            for num_tensors, num_bytes in map(size_of, update_info if isinstance(update_info, list) else [update_info]):
                record.num_tensors += num_tensors
                record.num_bytes += num_bytes

    async def finish(
        self, version: str | None, in_flight: PauseMode = "keep", *, unchanged: bool = False
    ) -> dict[str, Any]:
        """Make the update live: load, set the version and drop cached prefixes while generation is paused.

        in_flight: running requests go on with the new weights ("keep"; what they hold in the KV cache is computed
            anew, so that no token is made from two sets of weights), are waited for, or aborted.
        unchanged: the trainer heard from all our workers that they hold these very tensors: only the version moves.

        Idempotent: a second finish of the same version answers as the first.
        """
        async with self._exclusive():
            last = self.history.last
            if self.state is State.SERVING and last and last.weight_version == version and last.is_committed:
                return last.result()
            record = self._running_update("finish_weight_update")
            record.stage_s = time.time() - record.started_at
            before = await self.version()
            await self._commit(record, version, in_flight, unchanged=unchanged and not self._is_touched)
            if record.outcome == "committed":
                self._previous = before if self._keeps_previous else None
            return record.result()

    async def rollback(self, in_flight: PauseMode = "keep") -> dict[str, Any]:
        """Load the previous version again; a dirty replica goes back to the version it had. Raises Conflict."""
        async with self._exclusive():
            self._refuse_while(State.UPDATING, "rollback")
            before = await self.version()
            target = before if self.state is State.DIRTY else self._previous
            if target is None or self.backend not in STAGING_BACKENDS:
                raise Conflict("rollback: no previous version is kept here")
            record = self.history.begin("rollback", self.lease.holder)
            self._begin_update(may_touch=False)
            try:
                await self._workers.start()
                await self._workers.update({"rollback": True})
            except RequestError as error:
                await self._fail(record, f"rollback failed: {error}")
                raise
            was_dirty = self.state is State.DIRTY
            await self._commit(record, target, in_flight, unchanged=False)
            if not was_dirty:
                self._previous = before
            return record.result()

    async def abort(self, reason: str) -> None:
        """Give up a running update; nothing happens without one."""
        async with self._exclusive():
            if self.state is State.UPDATING and self.history.last is not None:
                await self._fail(self.history.last, reason, outcome="aborted")

    async def fence(self, reason: str) -> None:
        """Refuse to generate until an update commits: the rest of the fleet serves other weights."""
        async with self._exclusive():
            self._refuse_while(State.UPDATING, "fence")
            await self._refuse(State.FENCED, reason)

    # ---- generation -----------------------------------------------------------------------------------------------

    async def pause(self, mode: PauseMode, *, clear_cache: bool) -> None:
        async with self._exclusive():
            await self._workers.pause(mode, clear_cache=clear_cache)
            self.is_paused = True

    async def resume(self) -> None:
        async with self._exclusive():
            self.is_paused = False
            if self.state not in REFUSING:
                await self._workers.resume()

    async def set_version(self, version: str) -> None:
        async with self._exclusive():
            self._refuse_while(State.UPDATING, "update_weight_version")
            await self._workers.set_version(version)
            self._announce(version)

    def mark_dirty(self, reason: str) -> None:
        self.state, self.reason = State.DIRTY, reason

    # ---- the steps of the above -----------------------------------------------------------------------------------

    def _begin_update(self, *, may_touch: bool) -> None:
        self._workers.deadline = time.monotonic() + self._timeout_s
        self._resting = (self.state, self.reason)
        self._is_touched = may_touch or self.state is State.DIRTY

    async def _commit(self, record: Record, version: str | None, in_flight: PauseMode, *, unchanged: bool) -> None:
        record.in_flight = in_flight
        try:
            if unchanged:
                await self._load()
            else:
                with record.timed("drain_s"):
                    await self._workers.stand_still(in_flight)
                with record.timed("load_s"):
                    await self._load()
                self._is_touched = True
            with record.timed("flush_s"):
                if version is not None:
                    await self._workers.set_version(version)
                if not unchanged:
                    await self._workers.forget_prefixes()
                live = version if version is not None else await self.version()
        except RequestError as error:
            await self._fail(record, f"finish_weight_update failed: {error}")
            raise
        self._stop_expiry()
        self.state, self.reason, self._is_touched = State.SERVING, None, False
        self._announce(live)
        with record.timed("flush_s"):
            await self._resume_unless_paused()  # a fenced engine stands still, whatever was pushed
        self.history.end(record, "unchanged" if unchanged else "committed", live)

    async def _load(self) -> None:
        try:
            await self._workers.load()
        except RequestError as error:
            self._is_touched = self._is_touched or UNTOUCHED not in str(error)
            raise

    async def _fail(self, record: Record, reason: str, outcome: str = "failed") -> None:
        """End the update; what the model holds decides between serving on and dirty.

        Not one that the engine's death has ended (`_engine_died`): the new engine holds the checkpoint, whole.
        """
        if record.outcome != "running":
            return
        self._stop_expiry()
        self._end_lease()
        version = None
        if self.engine.is_running:
            await self._workers.let_go(is_staged=self.backend in STAGING_BACKENDS)
            version = await self.version()
        if self._is_touched:
            await self._refuse(State.DIRTY, reason)
        else:
            self.state, self.reason = self._resting
            await self._resume_unless_paused()
        self.history.end(record, outcome, version, reason)

    async def _refuse(self, state: State, reason: str) -> None:
        """From now on nothing is generated; what is running ends with finish reason "abort"."""
        self.state, self.reason = state, reason
        if self.engine.is_running:
            await self._workers.pause("abort", clear_cache=True)

    async def _let_go(self, reason: str) -> None:
        if self.state is State.UPDATING and self.history.last is not None:
            await self._fail(self.history.last, reason, outcome="aborted")
        elif self.lease.is_held:
            self._end_lease()
            if self.engine.is_running:
                await self._workers.disconnect()

    async def _resume_unless_paused(self) -> None:
        if not self.is_paused and self.state not in REFUSING and self.engine.is_running:
            await self._workers.resume()

    async def _trainer_gone(self, generation: int, reason: str) -> None:
        await self._let_go_if(lambda: self.lease.generation == generation, reason)

    async def _lease_ran_out(self, generation: int) -> None:
        # A call of the trainer's may have been under way, and has renewed it.
        reason = f"the lease of {self.lease.holder} ran out"
        await self._let_go_if(lambda: self.lease.generation == generation and self.lease.left_s == 0, reason)

    async def _let_go_if(self, is_lost: Callable[[], bool], reason: str) -> None:
        """Let go of a trainer that is lost. If it left workers in a collective, the engine is started again."""
        is_stuck = self._is_receiving and self.backend not in STAGING_BACKENDS
        try:
            async with self._exclusive(timeout_s=STUCK_S if is_stuck else None):
                if is_lost():
                    await self._let_go(reason)
        except Conflict:
            if self._is_receiving and is_lost():
                self.engine.kill()

    async def _abort_when_late(self, record: Record) -> None:
        await asyncio.sleep(self._timeout_s)
        async with self._exclusive():
            self._expiry = None
            if self.state is State.UPDATING and self.history.last is record:
                late = f"not finished within the trainer's own {self._timeout_s:.0f} s"
                await self._fail(record, late, outcome="aborted")

    def _stop_expiry(self) -> None:
        self._workers.deadline = None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _end_lease(self) -> None:
        self.lease.release()
        self._watch.stop()

    def _engine_died(self, reason: str) -> None:
        # The new engine starts from the checkpoint: nothing of a running update is left in it.
        if self.history.last is not None:
            self.history.end(self.history.last, "failed", None, reason)
        if self.state is not State.FENCED:
            self.state, self.reason = State.SERVING, None
        self._resting = (self.state, self.reason)
        self._previous, self._is_touched, self.is_paused = None, False, False
        self._announce(FIRST_VERSION)
        self._stop_expiry()
        self._end_lease()

    def _running_update(self, operation: str) -> Record:
        last = self.history.last
        if self.state is not State.UPDATING or last is None:
            raise Conflict(f"{operation}: no update is running (state: {self.state}); call start_weight_update first")
        return last

    def _refuse_while(self, state: State, operation: str) -> None:
        if self.state is state:
            raise Conflict(f"{operation}: not while {state}; finish or abort the update first")

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
