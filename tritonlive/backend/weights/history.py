"""Records of the last updates, and the versions with which running requests began."""

import time
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch

from tritonlive.wire.outcomes import COMMITS, FAILURES, Outcome
from tritonlive.wire.versions import FIRST_VERSION

KEPT_RECORDS = 64


@dataclass
class Record:
    """One update. Times are in seconds, `started_at` since the epoch."""

    kind: str  # push, rollback, reload
    holder: str | None
    update_id: str = ""
    started_at: float = field(default_factory=time.time)
    outcome: Outcome = Outcome.RUNNING
    reason: str | None = None
    weight_version: str | None = None  # the version that serves afterwards
    num_bytes: int = 0
    num_tensors: int = 0
    in_flight: str | None = None  # what happened to running requests: keep, wait, abort
    stage_s: float = 0.0  # from start to the begin of the commit, while generation continued
    pause_s: float = 0.0  # how long generation was paused: the sum of the next three, 0 if it never was
    drain_s: float = 0.0  # until the scheduler was paused
    load_s: float = 0.0  # loading at the workers
    flush_s: float = 0.0  # setting the version, resetting caches and running requests, resuming
    total_s: float = 0.0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of a `with` block to `drain_s`, `load_s` or `flush_s`."""
        began = time.monotonic()
        try:
            yield
        finally:
            setattr(self, phase, getattr(self, phase) + time.monotonic() - began)

    @property
    def is_committed(self) -> bool:
        return self.outcome in COMMITS

    def is_committed_as(self, update_id: str | None, version: str | None) -> bool:
        """Whether the update has committed and has that id. Without an id: whether it has committed as that version."""
        if not self.is_committed:
            return False
        return self.update_id == update_id if update_id is not None else self.weight_version == version

    def result(self) -> dict[str, Any]:
        """The answer to its trainer."""
        return {
            "update_id": self.update_id,
            "outcome": self.outcome,
            "weight_version": self.weight_version,
            "is_changed": self.outcome is not Outcome.UNCHANGED,
            "paused_s": self.pause_s,
            "load_s": self.load_s,
            "total_s": self.total_s,
        }


def size_of(update_info: dict[str, Any]) -> tuple[int, int]:
    """Numbers of tensors and bytes that `update_info` announces; 0 where it has no such fields."""
    dtypes, shapes = update_info.get("dtype_names") or [], update_info.get("shapes") or []
    known = [(getattr(torch, str(dtype), None), shape) for dtype, shape in zip(dtypes, shapes, strict=False)]
    sizes = (prod(shape) * dtype.itemsize for dtype, shape in known if isinstance(dtype, torch.dtype))
    return len(dtypes), sum(sizes)


class History:
    """The last updates, oldest first."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=KEPT_RECORDS)
        self.outcomes: Counter[Outcome] = Counter()
        self.pushed_bytes = 0

    @property
    def last(self) -> Record | None:
        return self._records[-1] if self._records else None

    @property
    def records(self) -> Sequence[Record]:
        return tuple(self._records)

    def begin(self, kind: str, holder: str | None, update_id: str = "") -> Record:
        """Add the record of an update that begins now."""
        record = Record(kind, holder, update_id)
        self._records.append(record)
        return record

    def find(self, update_id: str) -> Record | None:
        """The update of that id; None if it is not among the last."""
        return next((record for record in reversed(self._records) if record.update_id == update_id), None)

    def end(self, record: Record, outcome: Outcome, version: str | None, reason: str | None = None) -> None:
        """Set the outcome. An update ends once: later calls change nothing."""
        if record.outcome is not Outcome.RUNNING:
            return
        record.outcome, record.weight_version, record.reason = outcome, version, reason
        record.total_s = time.time() - record.started_at
        if outcome is not Outcome.UNCHANGED:
            record.pause_s = record.drain_s + record.load_s + record.flush_s
        self.outcomes[outcome] += 1
        if record.is_committed:
            self.pushed_bytes += record.num_bytes

    def describe(self) -> list[dict[str, Any]]:
        return [asdict(record) for record in self._records]


class InFlight:
    """Counts running requests by the version that served when they began."""

    def __init__(self) -> None:
        self.version = FIRST_VERSION  # serves now
        self._versions: dict[Hashable, str] = {}

    def begin(self, request: Hashable) -> None:
        self._versions[request] = self.version

    def end(self, request: Hashable) -> None:
        self._versions.pop(request, None)

    def by_version(self) -> dict[str, int]:
        return dict(Counter(self._versions.values()))

    @property
    def num_stale(self) -> int:
        """Number of requests that began with another version than the one that serves now."""
        return sum(version != self.version for version in self._versions.values())


@dataclass
class WeightStatistics:
    """Metrics of the weights. Field names are metric names without their prefix."""

    weight_updates_committed_total: int = 0
    weight_updates_unchanged_total: int = 0
    weight_updates_failed_total: int = 0
    weight_updates_aborted_total: int = 0
    weight_bytes_total: int = 0
    weight_update_pause_seconds: float = 0.0
    weight_update_load_seconds: float = 0.0
    weight_update_seconds: float = 0.0
    requests_stale: int = 0

    @classmethod
    def of(cls, history: History, in_flight: InFlight) -> "WeightStatistics":
        counts = {f"weight_updates_{outcome}_total": history.outcomes[outcome] for outcome in COMMITS | FAILURES}
        last = next((record for record in reversed(history.records) if record.outcome is Outcome.COMMITTED), None)
        return cls(
            **counts,
            weight_bytes_total=history.pushed_bytes,
            weight_update_pause_seconds=last.pause_s if last else 0.0,
            weight_update_load_seconds=last.load_s if last else 0.0,
            weight_update_seconds=last.total_s if last else 0.0,
            requests_stale=in_flight.num_stale,
        )
