"""Admits requests with a grammar (structured outputs): the one place that every door into the engine passes.

A grammar is compiled in a process that can be killed (compiler_process.py) before the engine core gets it. There it is
compiled again, which takes as long as here, so what would block or blow up the engine core ends here. Verdicts are
kept: a grammar that comes again costs a hash.

Unnecessary once vLLM's engine core compiles with limits of time and memory (vllm#43920 is about its one thread pool).
"""

import asyncio
import hashlib
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vllm.sampling_params import SamplingParams

from tritonlive.backend.tensors import BadTensor, RequestError
from tritonlive.backend.vllm_seam.structured_outputs import StructuredOutputsParams, set_backend
from tritonlive.wire.error_codes import ErrorCode

from .compiler_client import CompilerLost
from .lanes import Lane
from .limits import FIELD, MIB, GrammarLimits
from .messages import Compiled, Ended, Rejected

# Processor time of the quick lane. An ordinary schema takes 0.02 to 0.1 s (vocabulary of 49,152).
QUICK_CPU_S = 0.5
QUICK_SLOTS = max(2, (os.cpu_count() or 2) // 2)
MAX_WAITING_QUICK = 256
MAX_WAITING_SLOW = 3
KEPT_VERDICTS = 4096
# A verdict that depends on how busy the machine was.
KEPT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Verdict:
    """What came of a grammar."""

    backend: str | None
    reason: str | None = None
    expires_at: float = float("inf")


class Compiles(Protocol):
    """The compiler process, or a test's stand-in."""

    async def run(self, fields: dict[str, Any], memory_bytes: int, wall_s: float, cpu_s: float = 0.0) -> Ended: ...


@dataclass
class Compilation:
    """A grammar that is being compiled, and how many requests wait for it."""

    task: "asyncio.Task[Verdict]"
    num_waiting: int = 0


class Grammars:
    """Admits or refuses the grammars of requests. For the engine's loop."""

    def __init__(self, compiler: Compiles, limits: GrammarLimits, check_can_generate: Callable[[], None]) -> None:
        """`check_can_generate` raises RequestError if the replica may not generate: asked again after each wait."""
        self._compiler = compiler
        self._limits = limits
        self._check_can_generate = check_can_generate
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._running: dict[bytes, Compilation] = {}
        self._quick = Lane(QUICK_SLOTS, MAX_WAITING_QUICK)
        self._slow = Lane(1, MAX_WAITING_SLOW)

    def admit_known(self, params: SamplingParams) -> bool:
        """Admit a request without a grammar, or with a known one. False: `admit` must. Raises BadTensor."""
        grammar = params.structured_outputs
        if grammar is None:
            return True
        verdict = self._known(self._key(grammar))
        if verdict is not None:
            apply(verdict, grammar)
        return verdict is not None

    async def admit(self, params: SamplingParams) -> None:
        """Return when the engine may have the request. Cancelling ends a compilation for which nobody else waits.

        Raises BadTensor for a grammar that cannot be compiled within the limits, RequestError.
        """
        if (grammar := params.structured_outputs) is None:
            return
        key = self._key(grammar)
        verdict = self._known(key)
        if verdict is None:
            verdict = await self._compiled(key, grammar)
            self._check_can_generate()
        apply(verdict, grammar)

    def _key(self, grammar: StructuredOutputsParams) -> bytes:
        text = self._limits.check(grammar)
        options = (
            f"{grammar.disable_any_whitespace} {grammar.disable_additional_properties} {grammar.whitespace_pattern}"
        )
        return hashlib.sha256(f"{options} {text}".encode(errors="surrogatepass")).digest()

    def _known(self, key: bytes) -> Verdict | None:
        verdict = self._verdicts.get(key)
        if verdict is None or verdict.expires_at < time.monotonic():
            return None
        self._verdicts.move_to_end(key)
        return verdict

    async def _compiled(self, key: bytes, grammar: StructuredOutputsParams) -> Verdict:
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = Compilation(asyncio.create_task(self._compile(key, grammar)))
        running.num_waiting += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.num_waiting -= 1
            if running.num_waiting == 0:
                running.task.cancel()  # does nothing to one that is done
                if self._running.get(key) is running:
                    del self._running[key]

    async def _compile(self, key: bytes, grammar: StructuredOutputsParams) -> Verdict:
        fields = {name: value for name, value in vars(grammar).items() if not name.startswith("_")}
        memory, timeout_s = self._limits.memory_mib * MIB, self._limits.timeout_s
        try:
            async with self._quick:
                ended = await self._compiler.run(fields, memory, timeout_s, QUICK_CPU_S)
            if ended.signal in (signal.SIGPROF, signal.SIGALRM):
                async with self._slow:
                    ended = await self._compiler.run(fields, memory, timeout_s)
        except CompilerLost:
            raise RequestError(f"{FIELD}: the grammar compiler is starting; try again", ErrorCode.BUSY) from None
        verdict = self._verdict(ended)
        self._verdicts[key] = verdict
        if len(self._verdicts) > KEPT_VERDICTS:
            self._verdicts.popitem(last=False)
        return verdict

    def _verdict(self, ended: Ended) -> Verdict:
        if isinstance(ended.result, Compiled):
            return Verdict(ended.result.backend)
        if isinstance(ended.result, Rejected):
            return Verdict(None, f"the grammar cannot be compiled: {ended.result.reason}")
        if ended.signal == signal.SIGALRM:
            reason = f"the grammar did not compile within {self._limits.timeout_s:g} s (--grammar-timeout)"
            return Verdict(None, reason, time.monotonic() + KEPT_TIMEOUT_S)
        reason = f"the grammar's compilation failed, perhaps for more than {self._limits.memory_mib} MiB of memory"
        return Verdict(None, f"{reason} (--grammar-memory; {signal_name(ended.signal)})")


def apply(verdict: Verdict, grammar: StructuredOutputsParams) -> None:
    """Name the compiler for the engine core. Raises BadTensor with the reason if there is none."""
    if verdict.backend is None:
        raise BadTensor(FIELD, verdict.reason or "the grammar cannot be compiled")
    set_backend(grammar, verdict.backend)


def signal_name(number: int) -> str:
    return signal.Signals(number).name if number else "no answer"
