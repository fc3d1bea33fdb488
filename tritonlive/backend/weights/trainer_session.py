"""The connected trainer: it takes the lease, runs updates, and is released when it disconnects, fails or is gone."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import BadTensor, Conflict, RequestError
from tritonlive.wire.outcomes import FAILURES, Outcome

from .lease import Lease, read_holder
from .operation_lock import OperationLock
from .running_update import RunningUpdate
from .trainer_watch import TrainerWatch
from .updates import Updates
from .worker_calls import OPERATION_TIMEOUT_S, Workers

# A worker that receives from a trainer that is gone does not come back by itself (NCCL).
STUCK_S = 5.0


class TrainerSession:
    """At most one trainer's lease and updates. Its methods expect the caller to hold the lock."""

    def __init__(self, engine: Engine, workers: Workers, updates: Updates, lock: OperationLock) -> None:
        self.lease = Lease()
        self.timeout_s = OPERATION_TIMEOUT_S
        """Time limit of the trainer's updates, from start to finish."""
        self._engine = engine
        self._workers = workers
        self._updates = updates
        self._lock = lock
        self._watch = TrainerWatch(self.lease, self._trainer_gone, self._lease_expired)

    async def take_lease(self, init_info: dict[str, Any], operation: str, *, begins_anew: bool = False) -> None:
        """Give the lease to the trainer of `init_info`, and remove the lease's fields from it.

        An expired holder is released. With `begins_anew`, a holder that takes its own lease again aborts its running
        update: it has given that update up, and its abort was lost. Raises Conflict, BadTensor.
        """
        holder, lease_s, is_anonymous = read_holder(init_info)
        self.lease.check_free_for(holder)
        if self.lease.holder == holder:
            if begins_anew and self._updates.running is not None:
                await self.abort(self._updates.running, "its trainer begins anew")
            self._updates.refuse_while_running(operation)
        elif self.lease.is_held:
            await self.release(f"the lease of {self.lease.holder} ran out")
        if self._updates.backend is None:
            raise BadTensor(
                operation, 'weight transfer is off; start vLLM with --weight-transfer-config \'{"backend": "gloo"}\''
            )
        self.lease.take(holder, lease_s, is_anonymous=is_anonymous)
        self._watch.start({})

    async def join(self, init_info: dict[str, Any]) -> None:
        """Have the workers join the trainer's group. On failure the lease ends. Raises RequestError."""
        # vLLM's own transfer engines do not accept a deadline.
        is_staged = self._updates.is_staged
        timeout_s = init_info.get("timeout_s") if is_staged else init_info.pop("timeout_s", None)
        self.timeout_s = float(timeout_s or OPERATION_TIMEOUT_S)
        self._workers.deadline = time.monotonic() + self.timeout_s
        try:
            await self._workers.run("connect", init_info=init_info)
        except RequestError:
            self.end()
            raise
        finally:
            self._workers.deadline = None
        self.lease.renew()  # forming the group may have taken longer than the lease
        self._watch.start(init_info)

    async def release(self, reason: str) -> None:
        """Abort the trainer's running update, or have the workers leave its group; end its lease."""
        if self._updates.running is not None:
            await self.abort(self._updates.running, reason)
        elif self.lease.is_held:
            self.end()
            if self._engine.is_running:
                await self._workers.ask("disconnect")

    def end(self) -> None:
        """End the lease; the workers have left the trainer's group."""
        self.lease.release()
        self._watch.stop()

    async def abort(self, update: RunningUpdate, reason: str) -> None:
        """Abort a running update, which ends the lease."""
        async with self.ends_on_failure(update):
            await self._updates.fail(update, reason, outcome=Outcome.ABORTED)

    @asynccontextmanager
    async def ends_on_failure(self, update: RunningUpdate) -> AsyncIterator[None]:
        """A block in which the update may fail. A failed update ends the lease: the workers have left the group."""
        try:
            yield
        finally:
            if update.record.outcome in FAILURES:
                self.end()

    # ---- what happens without a call of the trainer; these take the lock --------------------------------------------

    async def abort_expired(self, update: RunningUpdate) -> None:
        """Abort an update that its trainer has not finished by its own deadline."""
        async with self._lock.exclusive():
            await self.abort(update, f"not finished within the trainer's own {update.timeout_s:.0f} s")

    async def _trainer_gone(self, generation: int, reason: str) -> None:
        await self._release_if(lambda: self.lease.generation == generation, reason)

    async def _lease_expired(self, generation: int) -> None:
        # A call of the trainer that was under way may have renewed the lease.
        reason = f"the lease of {self.lease.holder} ran out"
        await self._release_if(lambda: self.lease.generation == generation and self.lease.left_s == 0, reason)

    async def _release_if(self, is_lost: Callable[[], bool], reason: str) -> None:
        """Release a lost trainer. If it has left workers in a collective, kill the engine: nothing else frees them."""
        is_stuck = self._is_receiving and not self._updates.is_staged
        try:
            async with self._lock.exclusive(timeout_s=STUCK_S if is_stuck else None):
                if is_lost():
                    await self.release(reason)
        except Conflict:
            if self._is_receiving and is_lost():
                self._engine.kill()

    @property
    def _is_receiving(self) -> bool:
        return self._updates.running is not None and self._updates.running.is_receiving
