"""The life of the vLLM engine: it starts on an event loop of its own, is supervised, restarted when it dies, stopped.

Everything else in the backend runs on that loop.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import psutil
import triton_python_backend_utils as pb_utils
import uvloop

from tritonlive.wire.environment import ENGINE_HOOK_VARIABLE

from . import cpu
from .arguments import parse_arguments, with_weight_operations, with_weight_transfer
from .settings import Settings
from .tensors import Unavailable
from .vllm_seam import structured_outputs
from .vllm_seam.core import close_sockets, engine_processes, serving_processes, start_output_handler
from .vllm_seam.messages import AsyncLLM

SUPERVISION_INTERVAL_S = 0.25
RESTART_DELAY_S = 1.0
SHUTDOWN_TIMEOUT_S = 10.0
# Called in the engine's processes (sync/worker/plugin.py).
ENGINE_HOOK = f"{structured_outputs.__name__}:{structured_outputs.install.__name__}"

StartHook = Callable[[AsyncLLM], Awaitable[None] | None]
DeathHook = Callable[[str], None]


class EngineDied(Unavailable):
    """There is no engine now; a new one is being started."""

    def __init__(self) -> None:
        super().__init__("engine: died and is being started again; try again in a minute")


class Engine:
    """Owns AsyncLLM and the thread of the event loop on which it lives."""

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError for arguments that vLLM does not accept. Starts nothing."""
        self.settings = settings
        argv = with_weight_operations(with_weight_transfer(settings.engine_argv))
        self.argv = [*argv, *cpu.prepare(parse_arguments(argv))]
        self.arguments = parse_arguments(self.argv)
        self.loop = uvloop.new_event_loop()
        self.started_at = time.time()
        self.num_restarts = 0
        self.supported_tasks: tuple[Any, ...] = ()
        self.died: asyncio.Future[None] = self.loop.create_future()
        """Done when the engine that runs now has died; each engine has a new one."""
        self._llm: AsyncLLM | None = None
        self._stopping = False
        self._supervisor: asyncio.Task[None] | None = None
        self._processes: list[psutil.Process] = []
        self._on_start: list[StartHook] = []
        self._on_death: list[DeathHook] = []
        self._thread = threading.Thread(target=self._run_loop, name="engine-loop", daemon=True)

    @property
    def llm(self) -> AsyncLLM:
        """The running engine. Raises EngineDied while there is none."""
        if self._llm is None or self._llm.errored:
            raise EngineDied
        return self._llm

    @property
    def is_running(self) -> bool:
        """Whether there is an engine, and it has not failed."""
        return self._llm is not None and not self._llm.errored

    def on_start(self, hook: StartHook) -> None:
        """Call `hook` with every newly started AsyncLLM, before the engine takes requests. Awaits what it returns."""
        self._on_start.append(hook)

    def on_death(self, hook: DeathHook) -> None:
        """Call `hook` with the reason when the engine has died."""
        self._on_death.append(hook)

    def start(self) -> None:
        """Start the loop and the engine; returns when the engine can generate. Raises what vLLM raises."""
        self._thread.start()
        self.run(self._start_llm()).result()
        self._supervisor = self.run(self._create_supervisor()).result()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Schedule a coroutine on the engine's loop from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def kill(self) -> None:
        """Kill the engine's processes, whatever they are doing. The supervisor starts a new engine."""
        for process in engine_processes(self._llm) if self._llm is not None else ():
            with contextlib.suppress(psutil.NoSuchProcess):  # the process may end by itself meanwhile
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()

    def stop(self) -> None:
        """Shut the engine down with all its processes, and end the loop's thread."""
        self._stopping = True
        if self._thread.is_alive():
            self.run(self._stop_llm()).result(timeout=SHUTDOWN_TIMEOUT_S * 2)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=SHUTDOWN_TIMEOUT_S)

    def create_llm(self) -> AsyncLLM:
        """Make a new engine; blocks until vLLM's processes are up."""
        os.environ[ENGINE_HOOK_VARIABLE] = ENGINE_HOOK
        return AsyncLLM.from_engine_args(self.arguments)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _start_llm(self) -> None:
        llm = await self.loop.run_in_executor(None, self.create_llm)  # the loop answers requests meanwhile
        for hook in self._on_start:
            if (pending := hook(llm)) is not None:
                await pending
        self.supported_tasks = await llm.get_supported_tasks()
        await cpu.allocate_stage_inputs(llm)
        start_output_handler(llm)
        self.died = self.loop.create_future()
        self._llm = llm
        self._processes = serving_processes(llm)

    async def _stop_llm(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
        if self._llm is not None:
            await self.loop.run_in_executor(None, self._llm.shutdown, SHUTDOWN_TIMEOUT_S)
            self._llm = None

    async def _create_supervisor(self) -> "asyncio.Task[None]":
        return asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def _supervise(self) -> None:
        while not self._stopping:
            await asyncio.sleep(SUPERVISION_INTERVAL_S)
            if self._llm is None:
                continue
            if self._llm.errored:
                await self._restart(self._llm)
            elif any(map(has_ended, self._processes)):
                # vLLM says so when it has stopped the other processes, which takes it seconds.
                pb_utils.Logger.log_error("a process of the vLLM engine has ended")
                self._processes = []
                self.kill()

    async def _restart(self, dead: AsyncLLM) -> None:
        pb_utils.Logger.log_error("the vLLM engine died; starting it again with the checkpoint's weights")
        self._llm = None
        self.died.set_result(None)
        for hook in self._on_death:
            hook("the engine died and is being started again")
        await self.loop.run_in_executor(None, dead.shutdown, SHUTDOWN_TIMEOUT_S)
        await close_sockets(dead)
        del dead  # 45 MB, while the next engine starts
        while not self._stopping:
            try:
                await self._start_llm()
            except Exception as error:  # vLLM raises anything at start-up: log it and try again
                pb_utils.Logger.log_error(f"the vLLM engine did not come back: {error}")
                await asyncio.sleep(RESTART_DELAY_S)
            else:
                self.num_restarts += 1
                pb_utils.Logger.log_info("the vLLM engine is back")
                return


def has_ended(process: psutil.Process) -> bool:
    """Whether a process runs no more, collected by its parent or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
