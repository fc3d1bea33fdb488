"""Rank 0's source in a push of several ranks: when rank 0 iterates it, the other ranks iterate theirs."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

from sync.errors import SyncError, TransferError
from sync.weights.weight_source import ParamMeta, WeightSource

from .push_channel import PushChannel

if TYPE_CHECKING:
    import torch


class LeadSource(WeightSource):
    """Yields the tensors of `source`, whose iteration is a collective of the trainer's ranks.

    `finish` reads an interrupted iteration to its end: otherwise the other ranks would wait in a collective for this
    rank.
    """

    def __init__(self, source: WeightSource, channel: PushChannel) -> None:
        self._source = source
        self._channel = channel
        self._iteration: _Iteration | None = None
        self.failure: Future[None] = Future()
        """Gets the error of another rank that fails; otherwise it never ends."""
        # All other methods of a source are this rank's own; they need no other rank.
        for name in dir(WeightSource):
            if not name.startswith("_") and name not in vars(LeadSource) and name != "select":
                setattr(self, name, getattr(source, name))

    def metadata(self) -> list[ParamMeta]:
        return self._source.metadata()

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
        self.finish()
        self._channel.send({"iterate": True})
        self._iteration = _Iteration(iter(self._source), self._check)
        return self._iteration

    def fail(self, error: SyncError) -> None:
        """Report that another rank failed: the running iteration raises its error, unless it waits in a collective."""
        if not self.failure.done():
            self.failure.set_exception(error)

    def finish(self) -> None:
        """Read the rest of the last iteration. Does nothing when another rank failed: that rank would not take part."""
        if self._iteration is not None and not self.failure.done():
            self._iteration.drain()

    def _check(self) -> None:
        if self.failure.done():
            self.failure.result()


class _Iteration:
    """An iterator that one thread reads, and that another thread may read to its end."""

    def __init__(self, pairs: "Iterator[tuple[str, torch.Tensor]]", check: Callable[[], None]) -> None:
        self._pairs = pairs
        self._check = check
        self._lock = threading.Lock()
        self._is_over = False
        self._is_draining = False

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
        return self

    def __next__(self) -> "tuple[str, torch.Tensor]":
        with self._lock:
            if self._is_draining:
                raise TransferError("the push was given up")
            self._check()
            return self._advance()

    def drain(self) -> None:
        with self._lock:
            self._is_draining = True
            while not self._is_over:
                try:
                    self._check()
                    self._advance()
                except StopIteration:
                    return

    def _advance(self) -> "tuple[str, torch.Tensor]":
        try:
            return next(self._pairs)
        except RuntimeError as error:  # from a collective, or for lack of memory
            self._is_over = True
            raise TransferError(
                f"a tensor could not be gathered at rank 0: {str(error).partition(chr(10))[0]}"
            ) from error
        except BaseException:  # the end, or an error: after both a generator yields nothing
            self._is_over = True
            raise
