"""What vLLM's workers are asked to do with weights: every rank answers with a status, and each call has a deadline."""

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
from vllm.v1.engine import PauseMode
from vllm.v1.engine.exceptions import EngineDeadError

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import BadTensor, Conflict, RequestError, Unavailable
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.outcomes import Code

# For workers that do not answer at all; a transport has shorter deadlines of its own.
OPERATION_TIMEOUT_S = 600.0
# What a caller gets when all ranks that failed answer alike; anything else is an internal error.
CODES: Mapping[Code, ErrorCode] = MappingProxyType(
    {Code.REJECTED: ErrorCode.INVALID, Code.NOT_HELD: ErrorCode.CONFLICT}
)
DEAD = "engine: died and is being started again; try again in a minute"


@dataclass(frozen=True)
class RankStatus:
    """What one worker answered (sync/worker/worker_extension.py)."""

    rank: int
    code: Code
    message: str
    fields: dict[str, Any]

    @property
    def current(self) -> str | None:
        """The id of the version that its model holds; None when it does not know."""
        return self.fields.get("current")

    @property
    def loadable(self) -> dict[str, str | None]:
        """The versions that it could load now: digests by id, None where it is not known (a checkpoint on disk)."""
        kept = {entry["id"]: entry["digest"] for entry in self.fields.get("kept", ()) if entry["is_loadable"]}
        checkpoint = self.fields["checkpoint"]
        return {checkpoint["id"]: None} | kept if checkpoint["is_loadable"] else kept


class WorkersFailed(RequestError):
    """At least one rank did not do what it was asked to; `code` of each is in `statuses`."""

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
        """Whether a rank's model may hold something else than before."""
        return any(status.code is Code.TOUCHED for status in self.statuses)


class Workers:
    """The engine's workers, of all its data parallel engines.

    Every call raises Unavailable when the engine has died. A worker that does not answer by `deadline` costs the engine
    its life: a broadcast that waits for a trainer cannot be interrupted (NCCL), and blocks the worker for everything.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.deadline: float | None = None  # of the running update, on the monotonic clock

    async def run(self, operation: str, **arguments: Any) -> list[RankStatus]:
        """Ask every rank, and return all answers, by rank. Raises WorkersFailed unless all are OK."""
        statuses = await self.ask(operation, **arguments)
        if any(status.code is not Code.OK for status in statuses):
            raise WorkersFailed(operation, statuses)
        return statuses

    async def ask(self, operation: str, **arguments: Any) -> list[RankStatus]:
        """As `run`, but returns what the ranks answer, whatever it is."""
        try:
            msgspec.msgpack.encode(arguments)  # as vLLM will
        except (OverflowError, TypeError, ValueError) as error:
            raise BadTensor("control_arguments", f"of {operation}: {error}") from None
        core = self._engine.llm.engine_core
        call = core.call_utility_all_async("collective_rpc", "weight_operation", None, (operation, arguments), None)
        try:
            per_engine = await self._answer(call)
        except Unavailable:
            raise
        except RequestError:
            # The method itself never raises. vLLM's executor does not read the other ranks' answers after one that
            # failed, and would take them for those of later calls.
            self._engine.kill()
            raise Unavailable(f"engine: {operation} failed in a worker; it is being started again") from None
        answers = [answer for engine in per_engine for answer in engine]
        statuses = [RankStatus(each["rank"], Code(each["code"]), each["message"], each) for each in answers]
        return sorted(statuses, key=lambda status: status.rank)

    async def pause_scheduler(self, mode: PauseMode) -> None:
        """Generate nothing from now on. As AsyncLLM.pause_generation, without the 20 ms that it sleeps at its end."""
        call = self._engine.llm.engine_core.pause_scheduler_async(mode=mode, clear_cache=False)
        await self._answer(call, is_fatal=mode != "wait")

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
        # Not by the update's deadline: a question shortly before it must not cost the engine its life.
        return await answer(self._engine, self._engine.llm.get_weight_version(), OPERATION_TIMEOUT_S)

    async def reset_caches(self) -> None:
        """Drop all that was computed with the old weights; running requests are set back and computed anew.

        As vLLM's own reset: cached prefixes, here and at KV connectors, processed media, and encoder outputs.
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
    """The versions that every rank can load, digests by id. Raises Conflict when ranks mean other tensors by an id."""
    if not statuses:
        return {}
    first, *others = (status.loadable for status in statuses)
    common = {update_id: digest for update_id, digest in first.items() if all(update_id in other for other in others)}
    for update_id, digest in common.items():
        if any(other[update_id] != digest for other in others):
            raise Conflict(f"weights: the ranks hold different tensors as {update_id}; push a full set of weights")
    return common


async def answer(engine: Engine, call: Coroutine[Any, Any, Any], timeout_s: float, *, is_fatal: bool = True) -> Any:
    """The call's answer. When there is none within `timeout_s`, the engine is killed and started again.

    Not if the call may rightly take longer (`is_fatal` false: it waits for running requests); then it is given up.

    Raises RequestError with what vLLM said, Unavailable when the engine has died.
    """
    died = engine.died
    task = asyncio.ensure_future(call)
    try:
        # vLLM does not end a call whose engine dies while it is under way.
        await asyncio.wait({task, died}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    except EngineDeadError:
        raise Unavailable(DEAD) from None
    except RequestError:
        raise
    except Exception as error:  # vLLM's utility calls wrap whatever a worker raised in a bare Exception
        raise RequestError(str(error)) from None
    finally:
        task.cancel()
    if died.done():
        raise Unavailable(DEAD)
    if not is_fatal:
        raise RequestError(f"engine: the running requests have not ended within {timeout_s:.0f} s")
    engine.kill()
    raise Unavailable(f"engine: no answer within {timeout_s:.0f} s; it is being started again")
