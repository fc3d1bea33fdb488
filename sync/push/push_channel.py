"""What the ranks of a trainer tell each other during one push: JSON under keys of a store, no pickle, no collective."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import Store


class PushChannel:
    """Rank 0 sends numbered commands; each other rank answers the first, and may report that it failed.

    Commands are {"names": [...] or null} (the names rank 0 will iterate), {"iterate": true}, and, last,
    an outcome (push_outcome.py).
    """

    def __init__(self, store: "Store", rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._count = 0  # commands sent, or received

    def send(self, command: dict[str, Any]) -> None:
        """Rank 0: one more command to all."""
        self._store.set(f"command/{self._count}", json.dumps(command))
        self._count += 1

    def receive(self) -> dict[str, Any] | None:
        """The next command, if it is there."""
        key = f"command/{self._count}"
        if not self._store.check([key]):
            return None
        self._count += 1
        return json.loads(self._store.get(key))

    def say(self, what: str, value: dict[str, Any]) -> None:
        """Rank > 0: tell rank 0 something, once: "ready" or "failed"."""
        self._store.set(f"{what}/{self.rank}", json.dumps(value))

    def heard(self, what: str) -> dict[int, dict[str, Any]]:
        """Rank 0: which ranks have said it, and what."""
        keys = {rank: f"{what}/{rank}" for rank in range(1, self.world_size)}
        return {rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])}

    def clear(self) -> None:
        """Rank 0: delete the keys, when no rank reads them any more."""
        said = [f"{what}/{rank}" for what in ("ready", "failed") for rank in range(1, self.world_size)]
        for key in [f"command/{number}" for number in range(self._count)] + said:
            if self._store.check([key]):
                self._store.delete_key(key)
