"""What a worker remembers of the weights it serves: enough to know whether a push changes them, and to go back.

    a push stages ──► Update ──commit──► current ──next commit──► previous ──next commit──► its memory is used again

Before the first push the current weights are the checkpoint that vLLM was started with.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from .digest import Digests, tensor_digest
from .errors import TransferError
from .memory import Memory
from .sources import WeightSource

M = TypeVar("M", bound=Memory)
# One is enough for a worker alone. One that stages for others (segments.py) cannot use what these still keep, which are
# two versions; it costs no memory to have that ready for later.
MAX_SPARES = 3
Staged = list[tuple[str, torch.Tensor]]


@dataclass
class Update:
    """Tensors that arrived, as views of `memory`, and their digests; without memory these alone."""

    tensors: Staged
    digests: Digests
    memory: Memory | None
    is_unchanged: bool = False

    def matches(self, digests: Digests) -> bool:
        """Whether these are the same tensors, bit for bit."""
        return self.digests == digests


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
        self._spares: Sequence[Memory] = ()

    def matches(self, digests: Digests) -> bool:
        """Whether the model holds exactly these tensors already."""
        return not self.is_spoiled and self._current is not None and self._current.matches(digests)

    def commit(self, update: Update) -> None:
        """The model holds `update` now."""
        self.is_spoiled = False
        dropped = self._previous
        if self.is_kept:
            self._previous, self._current = self._current, update
        else:
            self.release(update.memory)
            self._previous, self._current = None, Update([], update.digests, None)
        if isinstance(dropped, Update):
            self.release(dropped.memory)

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

    def take_memory(self, kind: type[M], num_bytes: int, is_usable: Callable[[M], bool], make: Callable[[], M]) -> M:
        """Memory to stage in; that of an update before is used again if possible, since fresh pages are slow."""
        spares = [spare for spare in self._spares if isinstance(spare, kind) and len(spare.data) == num_bytes]
        usable = next(filter(is_usable, spares), None)
        # The old goes before the new comes.
        self._spares = [spare for spare in spares if spare is not usable][1 - MAX_SPARES :]
        del spares
        return usable or make()

    def release(self, memory: Memory | None) -> None:
        """Memory whose tensors nobody needs any more."""
        if memory is not None:
            memory.release()
            self._spares = [*self._spares, memory][-MAX_SPARES:]
