"""A worker process. Reads one JSON command per line and answers with one JSON line."""

import itertools
import json
import os
import sys
from typing import Any

from sync.transport.gloo import Membership
from sync.transport.worker.memory import MemoryPool
from sync.transport.worker.segments import Segment, SegmentView
from sync.weights.digest import tensor_digest
from sync.weights.weight_source import ParamMeta
from sync.worker.gloo_receiver import Announcement, GlooReceiver
from sync.worker.weight_history import HistoryEntry, WeightHistory


class Worker:
    """Acts like vLLM's worker with a receiver (staged_weights.py), without a model."""

    def __init__(self) -> None:
        self.pool = MemoryPool(3)
        self.history = WeightHistory(self.pool)
        self._previous: str | None = None
        self._ids = map(str, itertools.count(1))
        self._receivers: list[GlooReceiver] = []

    @property
    def receiver(self) -> GlooReceiver:
        return self._receivers[-1]

    def join(self, membership: dict[str, Any]) -> None:
        for receiver in self._receivers:
            receiver.close()
        self._receivers.append(GlooReceiver(Membership(**membership), self.pool))

    def announce(self, names: list[str], dtype_names: list[str], shapes: list[list[int]]) -> None:
        metas = [ParamMeta.from_names(*each) for each in zip(names, dtype_names, shapes, strict=True)]
        self.receiver.drop()
        self.receiver.announce(Announcement(metas))

    def commit(self) -> None:
        update_id, self._previous = next(self._ids), self.history.current
        self.history.add(update_id, self.receiver.take(5))
        self.history.keep_only([update_id, *([self._previous] if self._previous else [])])
        self.history.current = update_id

    def forget(self) -> None:
        """Take and drop an update, like a commit that fails before it loads."""
        self.receiver.take(5)
        self.receiver.drop()

    def drop(self) -> None:
        self.receiver.drop()

    def roll_back(self) -> None:
        self.history.current, self._previous = self._previous, self.history.current

    def state(self) -> str:
        return str(self.receiver.state)

    def versions(self) -> list[Any]:
        """Current and previous version: inode of the memory, and digests of its contents now."""
        ids = (self.history.current, self._previous)
        return [describe(self.history.entry(update_id)) if update_id else None for update_id in ids]


def describe(entry: HistoryEntry | None) -> Any:
    if entry is None or entry.tensors is None:
        return None
    (memory,) = entry.memories
    assert isinstance(memory, Segment | SegmentView)
    inode = os.fstat(memory.descriptor).st_ino
    return inode, {name: tensor_digest(tensor) for name, tensor in entry.tensors.items()}


def main() -> None:
    worker = Worker()
    for line in sys.stdin:
        operation, arguments = json.loads(line)
        print(json.dumps(getattr(worker, operation)(**arguments)), flush=True)  # noqa: T201 - read by the test


if __name__ == "__main__":
    main()
