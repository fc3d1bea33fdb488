"""A compiler process for tests without one."""

import asyncio
from typing import Any

from tritonlive.backend.grammars.messages import Compiled, Ended


class FakeCompiler:
    """Answers every job with `result`, or the jobs of a grammar that `results` has with that. Counts and records."""

    def __init__(self) -> None:
        self.result = Ended(0, Compiled("xgrammar"))
        self.results: dict[str, Ended | Exception] = {}
        """By regex."""
        self.jobs: list[tuple[str, float]] = []
        """Regex and limit of processor time of each job."""
        self.num_cancelled = 0
        self.is_stopped = False
        self.gate: asyncio.Event | None = None
        """Jobs wait for it."""

    def start(self) -> None: ...

    def stop(self) -> None:
        self.is_stopped = True

    async def run(self, fields: dict[str, Any], memory_bytes: int, wall_s: float, cpu_s: float = 0.0) -> Ended:
        assert memory_bytes > 0
        assert wall_s > 0
        self.jobs.append((fields["regex"], cpu_s))
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        result = self.results.get(fields["regex"], self.result)
        if isinstance(result, Exception):
            raise result
        return result
