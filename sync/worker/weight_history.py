"""The weight versions that a worker has loaded, and the one that the model holds now.

    a push stages ──► StagedUpdate ──add──► an entry under the push's id ──► loaded: `current` is that id
                                                      └── the load failed: `current` is None

A worker knows its model's weights only from its own loads. Before the first push, after a failed load, and after any
other change of the weights (sleep, reset), `current` is None, and no push counts as "unchanged".

All ranks of an engine add the same ids in the same order, even when a load fails, and drop the same ids. So an id means
the same tensors at every rank.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import xxhash

from sync.errors import TransferError
from sync.transport.worker.memory import MemoryPool, UpdateMemory
from sync.weights.digest import Digests
from sync.worker.staged_update import StagedUpdate

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class HistoryEntry:
    """One version: the digest of each tensor, and the tensors themselves unless only digests are kept."""

    update_id: str
    digests: Digests
    tensors: Tensors | None
    memories: tuple[UpdateMemory, ...]

    @cached_property
    def digest(self) -> str:
        """16 hex digits over names, dtypes, shapes and bytes of all tensors, in any order."""
        lines = sorted(f"{meta.name} {meta} {value:016x}" for meta, value in self.digests.items())
        return xxhash.xxh3_64_hexdigest("\n".join(lines).encode())


class WeightHistory:
    """The entries, oldest first, and the id of the one that the model holds."""

    def __init__(self, pool: MemoryPool) -> None:
        self.keeps_tensors = True
        """Whether entries keep their tensors, for a rollback, or only their digests."""
        self.current: str | None = None
        """The id of the version that the model holds; None when it is unknown."""
        self._pool = pool
        self._entries: dict[str, HistoryEntry] = {}

    def entry(self, update_id: str) -> HistoryEntry | None:
        return self._entries.get(update_id)

    @property
    def current_entry(self) -> HistoryEntry | None:
        return self._entries.get(self.current) if self.current is not None else None

    def describe(self) -> list[dict[str, str | bool]]:
        """`id`, `digest` and `is_loadable` of every entry, oldest first."""
        return [
            {"id": entry.update_id, "digest": entry.digest, "is_loadable": entry.tensors is not None}
            for entry in self._entries.values()
        ]

    def is_unchanged(self, update: StagedUpdate) -> bool:
        """Whether the model already holds exactly these tensors."""
        current = self.current_entry
        return current is not None and current.digests == update.digests

    def add(self, update_id: str, update: StagedUpdate, *, base: HistoryEntry | None = None) -> HistoryEntry:
        """Add an entry with the update's tensors. Tensors that a partial push lacks come from the base."""
        entry = self._entries[update_id] = merge(update_id, update, base)
        return entry

    def keep_only(self, update_ids: Collection[str]) -> None:
        """Drop all other entries, and release their memory to the pool."""
        dropped = [entry for update_id, entry in self._entries.items() if update_id not in update_ids]
        self._entries = {update_id: entry for update_id, entry in self._entries.items() if update_id in update_ids}
        self._release(dropped)

    def drop_tensors(self) -> None:
        """Keep only digests: after a load, when no rollback is wanted."""
        dropped = list(self._entries.values())
        self._entries = {e.update_id: HistoryEntry(e.update_id, e.digests, None, ()) for e in dropped}
        self._release(dropped)

    def require(self, update_id: str) -> Tensors:
        """The version's tensors, by name. Raises TransferError when this worker does not hold them."""
        entry = self._entries.get(update_id)
        if entry is None or entry.tensors is None:
            raise TransferError(f"this worker does not hold the tensors of {update_id}")
        return entry.tensors

    def _release(self, dropped: Collection[HistoryEntry]) -> None:
        """Release the memory that no entry uses any more; a partial push shares memory with its base."""
        needed = {id(memory) for entry in self._entries.values() for memory in entry.memories}
        released: set[int] = set()
        for entry in dropped:
            for memory in entry.memories:
                if id(memory) not in needed and id(memory) not in released:
                    released.add(id(memory))
                    self._pool.release(memory)


def merge(update_id: str, update: StagedUpdate, base: HistoryEntry | None) -> HistoryEntry:
    """The version that a model holds after the update. Tensors that the update lacks come from the base."""
    memories = (update.memory,) if update.memory is not None else ()
    tensors, digests = dict(update.tensors), dict(update.digests)
    if base is not None:
        names = {meta.name for meta in digests}
        digests |= {meta: value for meta, value in base.digests.items() if meta.name not in names}
        tensors = dict(base.tensors or {}) | tensors
        memories += base.memories
    return HistoryEntry(update_id, digests, tensors, memories)
