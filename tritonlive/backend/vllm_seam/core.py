"""AsyncLLM's engine core client: its processes, outputs, requests and worker calls."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from .messages import AsyncLLM, EngineCoreOutputs, EngineCoreRequest, PauseMode

OutputsHook = Callable[[EngineCoreOutputs], EngineCoreOutputs | None]
"""Sees one step's outputs; returns what is left of them for the next hook, or None."""


def engine_processes(llm: AsyncLLM) -> Sequence[BaseProcess]:
    """The engine core's processes, one for each engine of data parallelism. Workers are their children."""
    manager = llm.engine_core.resources.engine_manager
    return () if manager is None else manager.processes


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
