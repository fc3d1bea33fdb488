"""The hop's model at the pace of a real engine: Triton loads this class in place of our own."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.hop.model import TritonPythonModel as HopModel

if TYPE_CHECKING:
    from tritonlive.backend.service import Service

STEP_S = float(os.environ.get("BENCH_STEP_S", "0.025"))
# A word of the tiny model's vocabulary. The hop's own token is a special one, which has no text.
TOKEN = 2000


class Pace:
    """Waits until the next step is due and the step before it is sent."""

    def __init__(self, drained: Callable[[], Awaitable[None]]) -> None:
        self._drained = drained
        self._due = 0.0

    async def wait(self) -> None:
        self._due = max(self._due + STEP_S, time.monotonic())
        await asyncio.sleep(self._due - time.monotonic())
        await self._drained()


class TritonPythonModel(HopModel):
    """Makes one token per request and step, and a step every `STEP_S`.

    An engine without a pace is faster than the front end; vLLM would then merge tokens into fewer events.
    """

    def assemble(self, version_folder: Path) -> "Service":
        from bench.hop import free_core, free_engine

        free_core.TOKEN = TOKEN
        free_engine.FreeCore = lambda drained: free_core.FreeCore(Pace(drained).wait)
        return super().assemble(version_folder)
