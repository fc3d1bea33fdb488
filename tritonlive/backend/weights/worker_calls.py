"""Calls to vLLM's workers and engine about weights. Every rank answers with a status; every call has a deadline."""

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from tritonlive.backend.engine import Engine, EngineDied
from tritonlive.backend.tensors import (
    BadTensor,
    Conflict,
    RequestError,
    Unavailable,
)
from tritonlive.backend.vllm_seam import core
from tritonlive.backend.vllm_seam.messages import EngineDeadError, PauseMode
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.outcomes import Code
from tritonlive.wire.tensor_names import CONTROL_ARGUMENTS

# For workers that do not answer at all. Transports have shorter deadlines of their own.
OPERATION_TIMEOUT_S = 600.0
# The error for a caller if all failed ranks answer alike. Any other code is an internal error.
CODES: Mapping[Code, ErrorCode] = MappingProxyType(
    {Code.REJECTED: ErrorCode.INVALID, Code.NOT_HELD: ErrorCode.CONFLICT}
)


@dataclass(frozen=True)
class RankStatus:
    """One worker's answer (sync/worker/worker_extension.py)."""

    rank: int
    code: Code
    message: str
    fields: dict[str, Any]

    @property
    def current(self) -> str | None:
        """The id of the version that its model holds; None if unknown."""
        return self.fields.get("current")

    @property
    def loadable(self) -> dict[str, str | None]:
        """The versions that it can load now: digests by id. The digest of a checkpoint on disk is None."""
        kept = {entry["id"]: entry["digest"] for entry in self.fields.get("kept", ()) if entry["is_loadable"]}
        checkpoint = self.fields["checkpoint"]
        return {checkpoint["id"]: None} | kept if checkpoint["is_loadable"] else kept


class WorkersFailed(RequestError):
    """At least one rank has failed; `statuses` are the answers of all."""

    def __init__(self, operation: str, statuses: Sequence[RankStatus]) -> None:
        failed = [status for status in statuses if status.code is not Code.OK]
        self.statuses = tuple(statuses)
        reasons: dict[str, list[str]] = {}
        for status in failed:
            reasons.setdefault(status.message, []).append(str(status.rank))
        texts = [text if len(statuses) == 1 else f"rank {', '.join(ranks)}: {text}" for text, ranks in reasons.items()]
        codes = {status.code for status in failed}
        code = CODES.get(codes.pop(), ErrorCode.INTERNAL) if len(codes) == 1 else ErrorCode.INTERNAL
        super().__init__(f"{operation}: {'; '.join(texts)}", code)

    @property
    def is_touched(self) -> bool:
        """Whether a rank's model may hold other tensors than before."""
        return any(status.code is Code.TOUCHED for status in self.statuses)


class Workers:
    """The workers of all data-parallel engines.

    Every call raises Unavailable when the engine has died. If a worker does not answer by `deadline`, the engine is
    killed: a broadcast that waits for a trainer cannot be interrupted (NCCL), and blocks the worker.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.deadline: float | None = None  # of the running operation, on the monotonic clock

    async def run(self, operation: str, **arguments: Any) -> list[RankStatus]:
        """Run an operation at every rank. Returns the answers by rank. Raises WorkersFailed unless all are OK."""
        statuses = await self.ask(operation, **arguments)
        if any(status.code is not Code.OK for status in statuses):
            raise WorkersFailed(operation, statuses)
        return statuses

    async def ask(self, operation: str, **arguments: Any) -> list[RankStatus]:
        """Run an operation at every rank. Returns the answers by rank, failures included."""
        try:
            msgspec.msgpack.encode(arguments)  # as vLLM will, too late for a good error
        except (OverflowError, TypeError, ValueError) as error:
            raise BadTensor(CONTROL_ARGUMENTS, f"of {operation}: {error}") from None
        try:
            per_engine = await self._answer(core.call_workers(self._engine.llm, operation, arguments))
        except Unavailable:
            raise
        except RequestError:
            # The worker's method never raises. After a call that failed, vLLM's executor leaves the other ranks'
            # answers unread and would take them for answers to later calls.
            self._engine.kill()
            raise Unavailable(f"engine: {operation} failed in a worker; it is being started again") from None
        answers = [answer for engine in per_engine for answer in engine]
        statuses = [RankStatus(each["rank"], Code(each["code"]), each["message"], each) for each in answers]
        return sorted(statuses, key=lambda status: status.rank)

    async def pause_scheduler(self, mode: PauseMode) -> None:
        """Generate nothing from now on; caches stay."""
        await self._answer(core.pause_scheduler(self._engine.llm, mode), is_fatal=mode != "wait")

    async def pause(self, mode: PauseMode, *, clear_cache: bool) -> None:
        call = self._engine.llm.pause_generation(mode=mode, clear_cache=clear_cache)
        await self._answer(call, is_fatal=mode != "wait")

    async def resume(self) -> None:
        await self._answer(self._engine.llm.resume_generation())

    async def sleep(self, level: int, mode: PauseMode) -> None:
        await self._answer(self._engine.llm.sleep(level, mode), is_fatal=mode != "wait")

    async def wake_up(self, tags: list[str] | None) -> bool:
        return await self._answer(self._engine.llm.wake_up(tags))

    async def set_version(self, version: str) -> None:
        await self._answer(self._engine.llm.update_weight_version(version))

    async def version(self) -> str:
        # Without the update's deadline: a question shortly before it must not cost the engine its life.
        return await answer(self._engine, self._engine.llm.get_weight_version(), OPERATION_TIMEOUT_S)

    async def reset_caches(self) -> None:
        """Drop everything computed with the old weights. Running requests are computed anew.

        As vLLM's own reset: prefix caches, here and at KV connectors, processed media, and encoder outputs.
        """
        is_reset = await self._answer(
            self._engine.llm.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
        )
        if not is_reset:
            raise RequestError("reset_prefix_cache: the KV connector's cache could not be reset")
        if self._engine.llm.model_config.is_multimodal_model:
            await self._answer(self._engine.llm.reset_mm_cache())
            await self._answer(self._engine.llm.reset_encoder_cache())

    async def _answer(self, call: Coroutine[Any, Any, Any], *, is_fatal: bool = True) -> Any:
        left = OPERATION_TIMEOUT_S if self.deadline is None else max(1.0, self.deadline - time.monotonic())
        return await answer(self._engine, call, min(left, OPERATION_TIMEOUT_S), is_fatal=is_fatal)


def common_versions(statuses: Sequence[RankStatus]) -> dict[str, str | None]:
    """The versions that every rank can load: digests by id. Raises Conflict if ranks differ in the tensors of an id."""
    if not statuses:
        return {}
    first, *others = (status.loadable for status in statuses)
    common = {update_id: digest for update_id, digest in first.items() if all(update_id in other for other in others)}
    for update_id, digest in common.items():
        if any(other[update_id] != digest for other in others):
            raise Conflict(f"weights: the ranks hold different tensors as {update_id}; push a full set of weights")
    return common


async def answer(engine: Engine, call: Coroutine[Any, Any, Any], timeout_s: float, *, is_fatal: bool = True) -> Any:
    """Await a call to the engine. Without an answer within `timeout_s` the engine is killed and started again.

    is_fatal: False for a call that waits for running requests and may rightly take longer. It is cancelled instead.

    Raises RequestError with vLLM's message, Unavailable if the engine has died.
    """
    died = engine.died
    task = asyncio.ensure_future(call)
    try:
        # vLLM does not end a pending call when its engine dies.
        await asyncio.wait({task, died}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    except EngineDeadError:
        raise EngineDied from None
    except RequestError:
        raise
    except Exception as error:  # vLLM wraps what a worker raises in a bare Exception
        raise RequestError(str(error)) from None
    finally:
        task.cancel()
    if died.done():
        raise EngineDied
    if not is_fatal:
        raise RequestError(f"engine: the running requests have not ended within {timeout_s:.0f} s")
    engine.kill()
    raise Unavailable(f"engine: no answer within {timeout_s:.0f} s; it is being started again")
