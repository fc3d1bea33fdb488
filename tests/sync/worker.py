"""A worker in a process of its own, which does what it is told: one JSON object a line, each answered by one."""

import json
import os
import sys
from typing import Any

from sync.digest import tensor_digest
from sync.gloo import Membership
from sync.gloo_receiver import Announcement, GlooReceiver
from sync.kept import KeptWeights
from sync.segments import Segment, SegmentView
from sync.sources import ParamMeta
from sync.update import Update


class Worker:
    """What vLLM's worker does with a receiver (gloo_worker.py), without a model."""

    def __init__(self) -> None:
        self.kept = KeptWeights(lambda: None)
        self._receivers: list[GlooReceiver] = []

    @property
    def receiver(self) -> GlooReceiver:
        return self._receivers[-1]

    def join(self, membership: dict[str, Any]) -> None:
        for receiver in self._receivers:
            receiver.close()
        self._receivers.append(GlooReceiver(Membership(**membership), self.kept.pool))

    def announce(self, names: list[str], dtype_names: list[str], shapes: list[list[int]]) -> None:
        metas = [ParamMeta.from_names(*each) for each in zip(names, dtype_names, shapes, strict=True)]
        self.receiver.drop()
        self.receiver.announce(Announcement(metas))

    def commit(self) -> None:
        self.kept.commit(self.receiver.take(5))

    def forget(self) -> None:
        """As when a commit fails before it loads anything."""
        self.receiver.take(5)
        self.receiver.drop()

    def drop(self) -> None:
        self.receiver.drop()

    def roll_back(self) -> None:
        self.kept.roll_back()

    def state(self) -> str:
        return str(self.receiver.state)

    def versions(self) -> list[Any]:
        """Of the current version and the one before: the inode of its memory, digests of what is there now."""
        return [describe(version) for version in (self.kept._current, self.kept._previous)]


def describe(version: Any) -> Any:
    if not isinstance(version, Update):
        return None
    assert isinstance(version.memory, Segment | SegmentView)
    inode = os.fstat(version.memory.descriptor).st_ino
    return inode, {name: tensor_digest(tensor) for name, tensor in version.tensors}


def main() -> None:
    worker = Worker()
    for line in sys.stdin:
        operation, arguments = json.loads(line)
        print(json.dumps(getattr(worker, operation)(**arguments)), flush=True)  # noqa: T201 - read by the test


if __name__ == "__main__":
    main()
