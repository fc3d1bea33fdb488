"""What vLLM's workers are asked to do with weights: each call has a deadline, and its failure is a RequestError."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.v1.engine import PauseMode
from vllm.v1.engine.exceptions import EngineDeadError

from .engine import Engine
from .tensors import RequestError, Unavailable

# For workers that do not answer at all; a transport has shorter deadlines of its own.
OPERATION_TIMEOUT_S = 600.0
DEAD = "engine: died and is being started again; try again in a minute"


class Workers:
    """The engine's workers. Every call raises RequestError with what they said, Unavailable when the engine has died.

    One that does not answer by `deadline` costs the engine its life: a broadcast that waits for a trainer cannot be
    interrupted (NCCL), and blocks the worker for everything else.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.deadline: float | None = None  # of the running update, on the monotonic clock

    async def connect(self, init_info: dict[str, Any]) -> None:
        """Join a trainer's group."""
        await self._answer(self._engine.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info)))

    async def disconnect(self) -> None:
        await self._answer(self._engine.llm.shutdown_weight_transfer_engine())

    async def start(self) -> None:
        await self._answer(self._engine.llm.start_weight_update())

    async def update(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        await self._answer(self._engine.llm.update_weights(WeightTransferUpdateRequest(update_info)))

    async def load(self) -> None:
        """Make the update the model's weights; with an engine that does not stage, end it."""
        await self._answer(self._engine.llm.finish_weight_update())

    async def stand_still(self, mode: PauseMode) -> None:
        """Generate nothing from now on. As AsyncLLM.pause_generation, without the 20 ms that it sleeps at its end."""
        call = self._engine.llm.engine_core.pause_scheduler_async(mode=mode, clear_cache=False)
        await self._answer(call, is_fatal=mode != "wait")

    async def pause(self, mode: PauseMode, *, clear_cache: bool) -> None:
        call = self._engine.llm.pause_generation(mode=mode, clear_cache=clear_cache)
        await self._answer(call, is_fatal=mode != "wait")

    async def resume(self) -> None:
        await self._answer(self._engine.llm.resume_generation())

    async def set_version(self, version: str) -> None:
        await self._answer(self._engine.llm.update_weight_version(version))

    async def version(self) -> str:
        # Not by the update's deadline: whoever asks shortly before it must not cost the engine its life.
        return await answer(self._engine, self._engine.llm.get_weight_version(), OPERATION_TIMEOUT_S)

    async def forget_prefixes(self) -> None:
        """Drop every cached prefix; running requests are set back and computed anew."""
        await self._answer(self._engine.llm.reset_prefix_cache(reset_running_requests=True))

    async def let_go(self, *, is_staged: bool) -> None:
        """Leave the trainer, whatever the update's state, so that the next one can connect.

        vLLM refuses to release a trainer while an update is active. Our gloo worker takes the abort and finishes
        without loading anything. Engines that write into the model have to finish, even if that takes another start:
        what an unfinished load left waiting for the rest of its layer would count as the next one's. They fail on the
        abort, which clears the mark where finishing could not.
        """
        abort = self.update({"abort": "given up"})
        calls = (abort, self.load()) if is_staged else (self.start(), self.load(), abort)
        for call in (*calls, self.disconnect()):
            try:
                await call
            except RequestError:  # a trainer that cannot be let go of is left to its group's own deadline
                continue

    async def _answer(self, call: Coroutine[Any, Any, Any], *, is_fatal: bool = True) -> Any:
        left = OPERATION_TIMEOUT_S if self.deadline is None else max(1.0, self.deadline - time.monotonic())
        return await answer(self._engine, call, min(left, OPERATION_TIMEOUT_S), is_fatal=is_fatal)


async def answer(engine: Engine, call: Coroutine[Any, Any, Any], timeout_s: float, *, is_fatal: bool = True) -> Any:
    """The call's answer. When there is none within `timeout_s`, the engine is killed and started again.

    Not if the call may rightly take longer (`is_fatal` false: it waits for running requests); then it is given up.

    Raises RequestError with what the worker said, Unavailable when the engine has died.
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
