"""AsyncLLM's engine core client: its processes, outputs, requests and worker calls."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any, cast

import psutil
from vllm.v1.metrics.buckets import BucketFamilyKey, histogram_buckets

from .messages import AsyncLLM, EngineCoreOutputs, EngineCoreRequest, PauseMode

OutputsHook = Callable[[EngineCoreOutputs], EngineCoreOutputs | None]
"""Sees one step's outputs; returns what is left of them for the next hook, or None."""

# In the process titles of vLLM's workers (vllm.v1.executor.multiproc_executor), after VLLM_PROCESS_NAME_PREFIX.
WORKER_TITLE = "::Worker"


def engine_processes(llm: AsyncLLM) -> Sequence[BaseProcess]:
    """The engine core's processes, one for each engine of data parallelism. Workers are their children."""
    manager = llm.engine_core.resources.engine_manager
    return () if manager is None else manager.processes


def serving_processes(llm: AsyncLLM) -> list[psutil.Process]:
    """Engine cores and their workers. An engine with one worker runs it in the engine core itself."""
    found = []
    for each in engine_processes(llm):
        with suppress(psutil.NoSuchProcess):  # it may end in between
            core = psutil.Process(each.pid)
            workers = [child for child in core.children() if WORKER_TITLE in " ".join(child.cmdline())]
            found += [core, *workers]
    return found


async def close_sockets(llm: AsyncLLM) -> None:
    """Close the ZeroMQ context of an engine that was shut down, on the loop on which it ran.

    MPClient.shutdown of vLLM 0.32 schedules the closing of its sockets there and forgets their context: nine file
    descriptors and three threads. `ctx` shares its ZeroMQ context with `resources.ctx`, which must be the one to
    terminate it: otherwise its finalizer terminates freed memory.
    """
    await asyncio.sleep(0)  # the scheduled closing comes first
    core = llm.engine_core
    for socket in tuple(core.ctx._sockets):  # terminating waits for a socket that is open
        socket.close(linger=0)
    core.resources.ctx.destroy(linger=0)


def start_output_handler(llm: AsyncLLM) -> None:
    """Start AsyncLLM's task that takes outputs off the engine core. AsyncLLM itself starts it at the first request.

    Call it on the loop, after all calls of `intercept_outputs`.
    """
    llm._run_output_handler()


def intercept_outputs(llm: AsyncLLM, hook: OutputsHook) -> None:
    """Pass every EngineCoreOutputs to `hook` first; AsyncLLM sees what it returns. The last hook added runs last."""
    core = llm.engine_core
    receive: Callable[[], Awaitable[EngineCoreOutputs]] = core.get_output_async

    async def get_output_async() -> EngineCoreOutputs:
        while True:
            rest = hook(await receive())
            if rest is not None:
                return rest

    core.get_output_async = get_output_async


def watch_requests(
    llm: AsyncLLM, on_add: Callable[[EngineCoreRequest], None], on_abort: Callable[[Sequence[str]], None]
) -> None:
    """Call `on_add` with every request before it goes to the engine core, `on_abort` with ids before they are aborted.

    Both see the requests of AsyncLLM as well as those of `add_request` and `abort_requests`.
    """
    core = llm.engine_core
    add, abort = core.add_request_async, core.abort_requests_async

    async def add_request_async(request: EngineCoreRequest) -> None:
        on_add(request)
        await add(request)

    async def abort_requests_async(request_ids: list[str]) -> None:
        on_abort(request_ids)
        await abort(request_ids)

    core.add_request_async, core.abort_requests_async = add_request_async, abort_requests_async


def parent_request_id(request: EngineCoreRequest) -> str:
    """An id that the n generations of one request share: a generation's own id is "INDEX_ID" if n > 1, else "ID"."""
    index, _, parent = request.request_id.partition("_")
    is_one_of_several = index.isdigit() and parent.startswith(request.external_req_id or "\0")
    return parent if is_one_of_several else request.request_id


def metric_buckets(llm: AsyncLLM, family: str) -> Sequence[float]:
    """Upper bounds of a family of vLLM's histograms, as the engine's arguments have them."""
    overrides = llm.vllm_config.observability_config.custom_histogram_buckets
    return histogram_buckets(cast(BucketFamilyKey, family), llm.model_config.max_model_len, overrides)


def add_request(llm: AsyncLLM, request: EngineCoreRequest) -> Coroutine[Any, Any, None]:
    """Start a request in the engine core, below AsyncLLM's output processor. Raises EngineDeadError."""
    return llm.engine_core.add_request_async(request)


def abort_requests(llm: AsyncLLM, request_ids: list[str]) -> Coroutine[Any, Any, None]:
    """Abort requests in the engine core, below AsyncLLM's output processor."""
    return llm.engine_core.abort_requests_async(request_ids)


def call_workers(
    llm: AsyncLLM, operation: str, arguments: dict[str, Any]
) -> Coroutine[Any, Any, list[list[dict[str, Any]]]]:
    """Run `weight_operation(operation, arguments)` of the worker extension in every worker.

    Returns the workers' answers, engine by engine. AsyncLLM.collective_rpc answers for the first engine only.
    """
    return llm.engine_core.call_utility_all_async(
        "collective_rpc", "weight_operation", None, (operation, arguments), None
    )


def pause_scheduler(llm: AsyncLLM, mode: PauseMode) -> Coroutine[Any, Any, None]:
    """Pause the scheduler and keep its caches. As AsyncLLM.pause_generation, without its sleep of 20 ms at the end."""
    return llm.engine_core.pause_scheduler_async(mode=mode, clear_cache=False)


async def run_empty_step(llm: AsyncLLM) -> None:
    """Run one step without requests in every worker."""
    await llm.collective_rpc("execute_dummy_batch")
