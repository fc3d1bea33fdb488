"""Messages between the ranks of a trainer during one push: JSON under keys of a store, no pickle, no collective."""

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import Store


class ReportKind(StrEnum):
    """What another rank reports to rank 0."""

    READY = "ready"
    """Its answer to the first command."""
    FAILED = "failed"


class PushChannel:
    """Rank 0 sends numbered commands. Each other rank reports READY after the first one, and FAILED if it fails.

    Commands are {"names": [...] or null} (the names that rank 0 will iterate), {"iterate": true}, and at last an
    outcome (push_outcome.py).
    """

    def __init__(self, store: "Store", rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._count = 0  # commands sent, or received

    def send(self, command: dict[str, Any]) -> None:
        """Rank 0: send the next command to all ranks."""
        self._store.set(f"command/{self._count}", json.dumps(command))
        self._count += 1

    def receive(self) -> dict[str, Any] | None:
        """Other ranks: the next command; None when it has not been sent yet."""
        key = f"command/{self._count}"
        if not self._store.check([key]):
            return None
        self._count += 1
        return json.loads(self._store.get(key))

    def report(self, kind: ReportKind, value: dict[str, Any]) -> None:
        """Other ranks: report to rank 0, once of each kind."""
        self._store.set(f"{kind}/{self.rank}", json.dumps(value))

    def reports(self, kind: ReportKind) -> dict[int, dict[str, Any]]:
        """Rank 0: the reports of this kind so far, by rank."""
        keys = {rank: f"{kind}/{rank}" for rank in range(1, self.world_size)}
        return {rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])}

    def clear(self) -> None:
        """Rank 0: delete the keys. Call it when no rank reads them any more."""
        reports = [f"{kind}/{rank}" for kind in ReportKind for rank in range(1, self.world_size)]
        for key in [f"command/{number}" for number in range(self._count)] + reports:
            if self._store.check([key]):
                self._store.delete_key(key)
