"""One update of the weights from its start to its end: its record, deadline, expiry, and what it has touched."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tritonlive.backend.tensors import Conflict
from tritonlive.backend.vllm_seam.messages import PauseMode

from .history import Record, size_of
from .worker_calls import RankStatus, WorkersFailed

# A commit gets this long, far longer than a load takes: workers that need more do not answer at all.
COMMIT_BASE_S, COMMIT_BYTES_PER_S = 60.0, 200e6


@dataclass
class RunningUpdate:
    """A push, a rollback or a reload. At most one runs at a time. The trainer and the workers know it by its id."""

    update_id: str
    record: Record
    in_flight: PauseMode
    timeout_s: float
    """From start to finish, as the trainer asks."""
    is_touched: bool = False
    """Whether the model may hold other tensors than before the update."""
    is_receiving: bool = False
    """Whether workers are receiving tensors now."""
    is_announced: bool = False
    """Whether update_weights was called."""
    prepared: list[RankStatus] | None = None
    """The answers of all ranks to `prepare`, once every rank can load the update."""
    started_at: float = field(default_factory=time.monotonic)
    _expiry: "asyncio.Task[None] | None" = None

    # ---- deadline and expiry ----------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """The trainer's deadline on the monotonic clock."""
        return self.started_at + self.timeout_s

    @property
    def commit_deadline(self) -> float:
        """Deadline of a commit that begins now. It is never earlier than the trainer's.

        The trainer's deadline covers the trainer's own work. A load that it cut off would cost the engine its life.
        """
        return max(self.deadline, time.monotonic() + commit_timeout_s(self.record.num_bytes))

    def expire(self, on_expired: Callable[["RunningUpdate"], Awaitable[None]]) -> None:
        """Call `on_expired` after `timeout_s`, unless the update ends before."""

        async def wait() -> None:
            await asyncio.sleep(self.timeout_s)
            self._expiry = None  # ending the update must not cancel this task
            await on_expired(self)

        self._expiry = asyncio.create_task(wait())

    def cancel_expiry(self) -> None:
        """The update has ended."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    # ---- what the ranks have answered -------------------------------------------------------------------------------

    @property
    def is_unchanged(self) -> bool:
        """Whether every rank already holds these tensors, by the same id."""
        return self.held_id is not None

    @property
    def held_id(self) -> str | None:
        """The id by which every rank already holds these tensors; None when one does not.

        It may differ from the id of the version that serves: a commit may have failed after all ranks had loaded.
        """
        statuses = self.prepared or ()
        ids = {status.current if status.fields["is_unchanged"] else None for status in statuses}
        return ids.pop() if len(ids) == 1 else None

    @property
    def digests(self) -> set[str | None]:
        """Digests of the tensors that the ranks have staged; a single one if they agree."""
        return {status.fields["digest"] for status in self.prepared or ()}

    def note_failed_load(self, error: WorkersFailed, update_id: str) -> None:
        """Work out what a failed load has touched. `update_id`: of the version that was to be loaded.

        A rank that did load holds the new version, even if the rank that failed is untouched.
        """
        has_loaded = any(status.current == update_id for status in error.statuses)
        self.is_touched = self.is_touched or error.is_touched or has_loaded

    # ---- what the trainer has said ----------------------------------------------------------------------------------

    def note(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Add the tensors and bytes that update_weights announced to the record."""
        for num_tensors, num_bytes in map(size_of, update_info if isinstance(update_info, list) else [update_info]):
            self.record.num_tensors += num_tensors
            self.record.num_bytes += num_bytes

    def require(self, update_id: str | None, operation: str) -> None:
        """Raises Conflict when the trainer names another update than this one."""
        if update_id is not None and update_id != self.update_id:
            raise Conflict(f"{operation}: update {update_id} is not running here; {self.update_id} is")


def commit_timeout_s(num_bytes: int) -> float:
    """How long a commit of `num_bytes` may take before the engine counts as dead."""
    return COMMIT_BASE_S + num_bytes / COMMIT_BYTES_PER_S
