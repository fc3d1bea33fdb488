"""Collects the garbage of ended requests."""

import gc

from .responses import ResponseWriter


class RequestGarbage:
    """Runs Python's collector when requests have ended and nothing runs.

    Triton does not unload a model while one of its response senders lives, and an error's traceback can keep a sender
    in a reference cycle.
    """

    def __init__(self, writer: ResponseWriter) -> None:
        self._writer = writer
        self._is_marked = False

    def freeze(self) -> None:
        """Exempt all objects of now from collection: those of vLLM stay, and later collections are cheap.

        Objects of an engine that has died since the last call are collected.
        """
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def mark(self) -> None:
        """Note that a request runs or has run."""
        self._is_marked = True

    async def collect(self) -> None:
        """Collect if a request has run since the last collection."""
        if self._is_marked:
            self._is_marked = False
            await self._writer.drained()  # a response that waits to be sent is not garbage yet
            gc.collect()
