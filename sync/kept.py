"""What a worker remembers of the weights it serves: enough to know whether a push changes them, and to go back.

    a push stages ──► Update ──commit──► current ──next commit──► previous ──next commit──► its memory is used again

Before the first push the current weights are the checkpoint that vLLM was started with.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .digest import Digests, tensor_digest
from .errors import TransferError
from .memory import MemoryPool
from .sources import WeightSource
from .update import Update

# A worker that stages for others (segments.py) cannot use what these still keep, up to two versions.
MAX_SPARES = 3


@dataclass
class Checkpoint:
    """The checkpoint on disk; `find` gives its source, or None when it is not at hand."""

    find: Callable[[], WeightSource | None]

    def matches(self, digests: Digests) -> bool:
        """Whether the checkpoint has the same tensors in the dtypes served. Ends at the first that differs."""
        source = self.find()
        if source is None:
            return False
        wanted = {meta.name: (meta, value) for meta, value in digests.items()}
        for name, tensor in source:
            meta, value = wanted.pop(name, (None, None))
            if meta is not None and tensor_digest(tensor.to(meta.dtype)) != value:
                return False
        return not wanted

    @property
    def tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Raises TransferError when the checkpoint is not at hand."""
        source = self.find()
        if source is None:
            raise TransferError("gloo: the checkpoint is not at hand as safetensors")
        return source


class KeptWeights:
    """The current version and, if wanted, the one before it."""

    def __init__(self, find_checkpoint: Callable[[], WeightSource | None]) -> None:
        self.is_kept = True  # whether tensors are kept, for a rollback, or digests only
        self.is_spoiled = False  # a load failed: the model holds neither version whole
        self._current: Update | Checkpoint | None = Checkpoint(find_checkpoint)
        self._previous: Update | Checkpoint | None = None
        self.pool = MemoryPool(MAX_SPARES)

    def matches(self, digests: Digests) -> bool:
        """Whether the model holds exactly these tensors already."""
        if self.is_spoiled or self._current is None:
            return False
        current = self._current
        return current.digests == digests if isinstance(current, Update) else current.matches(digests)

    def commit(self, update: Update) -> None:
        """The model holds `update` now."""
        self.is_spoiled = False
        dropped = self._previous
        if self.is_kept:
            self._previous, self._current = self._current, update
        else:
            self.pool.release(update.memory)
            self._previous, self._current = None, Update([], update.digests, None)
        if isinstance(dropped, Update):
            self.pool.release(dropped.memory)

    def before(self) -> Iterable[tuple[str, torch.Tensor]]:
        """The tensors a rollback loads: the previous version, or the current one if its successor's load failed.

        Raises TransferError when there are none.
        """
        wanted = self._current if self.is_spoiled else self._previous
        if wanted is None or (isinstance(wanted, Update) and not wanted.tensors):
            raise TransferError("gloo: no previous version is kept")
        return wanted.tensors

    def roll_back(self) -> None:
        """The model holds what `before` gave."""
        if not self.is_spoiled:
            self._current, self._previous = self._previous, self._current
        self.is_spoiled = False
