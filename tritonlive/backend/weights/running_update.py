"""One update of the weights from its start to its end."""

import time
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.engine import PauseMode

from tritonlive.backend.tensors import Conflict

from .history import Record, size_of
from .worker_calls import RankStatus


@dataclass
class RunningUpdate:
    """A push or a rollback. At most one runs at a time; its id names it to the trainer and to the workers."""

    update_id: str
    record: Record
    in_flight: PauseMode
    timeout_s: float
    """From start to finish, as the trainer asked."""
    is_touched: bool = False
    """Whether the model may hold something else than before."""
    is_receiving: bool = False
    """Whether workers are busy with tensors."""
    is_announced: bool = False
    """Whether update_weights was called."""
    prepared: list[RankStatus] | None = None
    """Every rank's word that it can load the update."""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float:
        """On the monotonic clock."""
        return self.started_at + self.timeout_s

    @property
    def is_unchanged(self) -> bool:
        """Whether every rank holds these very tensors already, by the same id."""
        return self.held is not None

    @property
    def held(self) -> str | None:
        """The id by which every rank holds these very tensors already; None when one does not.

        It need not be that of the version that serves: a commit may have failed after all ranks had loaded.
        """
        statuses = self.prepared or ()
        ids = {status.current if status.fields["is_unchanged"] else None for status in statuses}
        return ids.pop() if len(ids) == 1 else None

    @property
    def digests(self) -> set[str | None]:
        """Of what the ranks have staged; one, if they agree."""
        return {status.fields["digest"] for status in self.prepared or ()}

    def note(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Count what was announced."""
        for num_tensors, num_bytes in map(size_of, update_info if isinstance(update_info, list) else [update_info]):
            self.record.num_tensors += num_tensors
            self.record.num_bytes += num_bytes

    def require(self, update_id: str | None, operation: str) -> None:
        """Raises Conflict when a trainer means another update than the one that runs."""
        if update_id is not None and update_id != self.update_id:
            raise Conflict(f"{operation}: update {update_id} is not running here; {self.update_id} is")
