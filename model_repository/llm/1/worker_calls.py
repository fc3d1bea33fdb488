"""Calls that vLLM's workers answer: each has a deadline, and its failure is a RequestError."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from .engine import Engine
from .tensors import RequestError, Unavailable

# For workers that do not answer at all; a transport has shorter deadlines of its own.
OPERATION_TIMEOUT_S = 600.0


async def answer(engine: Engine, call: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
    """The call's answer. When there is none within `timeout_s`, the engine is killed and started again.

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
        raise Unavailable("engine: died and is being started again; try again in a minute") from None
    except RequestError:
        raise
    except Exception as error:  # vLLM's utility calls wrap whatever a worker raised in a bare Exception
        raise RequestError(str(error)) from None
    finally:
        task.cancel()
    if died.done():
        raise Unavailable("engine: died and is being started again; try again in a minute")
    engine.kill()
    raise Unavailable(f"engine: no answer within {timeout_s:.0f} s; it is being started again")
