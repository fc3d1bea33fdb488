"""The vLLM engine: starts it on an event loop of its own, watches it, starts it again when it dies, stops it.

Everything else in this folder runs on that loop. What we use of vLLM beneath its public face is gathered here.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import psutil
import triton_python_backend_utils as pb_utils
import uvloop
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
from vllm.sampling_params import SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM

from . import cpu
from .settings import Settings
from .tensors import BadTensor, Unavailable

SUPERVISION_INTERVAL_S = 0.25
RESTART_DELAY_S = 1.0
SHUTDOWN_TIMEOUT_S = 10.0
WORKER_EXTENSION = "sync.worker.worker_extension.WeightOperations"


class Engine:
    """Owns AsyncLLM and the thread of the event loop it lives on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        argv = with_weight_operations(with_weight_transfer(settings.engine_argv))
        self.argv = [*argv, *cpu.prepare(parse_arguments(argv))]
        self.arguments = parse_arguments(self.argv)
        self.loop = uvloop.new_event_loop()
        self.started_at = time.time()
        self.num_restarts = 0
        self.died: asyncio.Future[None] = self.loop.create_future()  # of the engine that runs now
        self._llm: AsyncLLM | None = None
        self._supported_tasks: tuple[Any, ...] = ()
        self._stopping = False
        self._supervisor: asyncio.Task[None] | None = None
        self._on_start: list[Callable[[AsyncLLM], Awaitable[None] | None]] = []
        self._on_death: list[Callable[[str], None]] = []
        self._thread = threading.Thread(target=self._run_loop, name="engine-loop", daemon=True)

    @property
    def llm(self) -> AsyncLLM:
        """The running engine. Raises Unavailable while there is none."""
        if self._llm is None or self._llm.errored:
            raise Unavailable("engine: died and is being started again; try again in a minute")
        return self._llm

    @property
    def is_running(self) -> bool:
        return self._llm is not None and not self._llm.errored

    def on_start(self, hook: Callable[[AsyncLLM], Awaitable[None] | None]) -> None:
        """Call `hook` with every newly started AsyncLLM, and wait for what it returns, before it takes requests."""
        self._on_start.append(hook)

    def on_death(self, hook: Callable[[str], None]) -> None:
        """Call `hook` with the reason when the engine has died."""
        self._on_death.append(hook)

    def start(self) -> None:
        """Start the loop and the engine; returns when it can generate. Raises what vLLM raises."""
        self._thread.start()
        self.run(self._start_llm()).result()
        self._supervisor = self.run(self._create_supervisor()).result()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Schedule a coroutine on the engine's loop from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def kill(self) -> None:
        """End the engine's processes, whatever they are doing; the supervisor starts them again."""
        manager = self._llm.engine_core.resources.engine_manager if self._llm is not None else None
        for process in manager.processes if manager is not None else ():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()

    def stop(self) -> None:
        """Shut the engine down, its processes included."""
        self._stopping = True
        if self._thread.is_alive():
            self.run(self._stop_llm()).result(timeout=SHUTDOWN_TIMEOUT_S * 2)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=SHUTDOWN_TIMEOUT_S)

    def validate(self, request: EngineCoreRequest) -> SamplingParams:
        """Refuse what would harm the engine, as vLLM's own input processor does for requests it renders.

        An EngineCoreRequest comes ready-made from a front end; whoever reaches Triton's port could send one.
        Returns its sampling params. Raises BadTensor.
        """
        llm = self.llm
        if request.sampling_params is None or request.sampling_params.max_tokens is None:
            raise BadTensor("engine_request", "lacks sampling_params with max_tokens")
        if request.resumable or request.abort_immediately:
            raise BadTensor("engine_request", "resumable and abort_immediately are not served")
        if request.prompt_embeds is not None and not llm.model_config.enable_prompt_embeds:
            raise BadTensor("engine_request", "prompt_embeds are off; start vLLM with --enable-prompt-embeds")
        if request.prompt_token_ids is None and request.prompt_embeds is None:
            raise BadTensor("engine_request", "lacks prompt_token_ids")
        processor = llm.input_processor
        try:
            processor._validate_params(request.sampling_params, self._supported_tasks)
            processor._validate_lora(request.lora_request)
            if request.prompt_token_ids is not None:
                processor._validate_prompt_len(len(request.prompt_token_ids), "decoder")
                llm.renderer.validate_token_ids(request.prompt_token_ids)
        except (VLLMValidationError, ValueError, TypeError) as error:
            raise BadTensor("engine_request", str(error)) from None
        return request.sampling_params

    def create_llm(self) -> AsyncLLM:
        """A new engine; blocks until vLLM's processes are up."""
        return AsyncLLM.from_engine_args(self.arguments)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _start_llm(self) -> None:
        llm = await self.loop.run_in_executor(None, self.create_llm)  # the loop stays free to answer meanwhile
        for hook in self._on_start:
            if (pending := hook(llm)) is not None:
                await pending
        self._supported_tasks = await llm.get_supported_tasks()
        await cpu.allocate_stage_inputs(llm)
        llm._run_output_handler()
        self.died = self.loop.create_future()
        self._llm = llm

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
            if self._llm is not None and self._llm.errored:
                await self._restart(self._llm)

    async def _restart(self, dead: AsyncLLM) -> None:
        pb_utils.Logger.log_error("the vLLM engine died; starting it again with the checkpoint's weights")
        self._llm = None
        self.died.set_result(None)
        for hook in self._on_death:
            hook("the engine died and is being started again")
        await self.loop.run_in_executor(None, dead.shutdown, SHUTDOWN_TIMEOUT_S)
        while not self._stopping:
            try:
                await self._start_llm()
            except Exception as error:  # whatever vLLM raises at start-up: say it and try again
                pb_utils.Logger.log_error(f"the vLLM engine did not come back: {error}")
                await asyncio.sleep(RESTART_DELAY_S)
            else:
                self.num_restarts += 1
                pb_utils.Logger.log_info("the vLLM engine is back")
                return


def with_weight_transfer(argv: list[str]) -> list[str]:
    """`argv`, with a backend for pushes of weights unless it names one: NCCL on GPUs, gloo on a CPU.

    gloo is tritonlive's, so it is left out where the Triton model runs without the installed package.
    """
    if parse_arguments(argv).weight_transfer_config is not None:
        return argv
    load_general_plugins()
    backend = "gloo" if current_platform.is_cpu() else "nccl"
    if backend not in WeightTransferEngineFactory._registry:
        return argv
    return [*argv, "--weight-transfer-config", json.dumps({"backend": backend})]


def with_weight_operations(argv: list[str]) -> list[str]:
    """`argv`, such that the workers answer to weight operations (sync/worker/worker_extension.py).

    Raises ValueError when it names a worker extension that does not have them.
    """
    named = parse_arguments(argv).worker_extension_cls
    if not named:
        return [*argv, "--worker-extension-cls", WORKER_EXTENSION]
    from sync.worker.worker_extension import WeightOperations

    if not issubclass(resolve_obj_by_qualname(named), WeightOperations):
        raise ValueError(f"--worker-extension-cls {named}: must derive from {WORKER_EXTENSION}")
    return argv


def parse_arguments(argv: list[str]) -> AsyncEngineArgs:
    """vLLM's own parser over a `vllm serve` command line. Raises ValueError with the parser's message."""
    try:
        namespace = make_arg_parser(ServeArgumentParser()).parse_args(argv)
    except SystemExit as error:  # argparse asks for the process's end; inside Triton that is an error of the model
        raise ValueError(f"vLLM engine arguments: {error}") from error
    arguments = AsyncEngineArgs.from_cli_args(namespace)
    # Several processes feed the one engine (front ends and this one), so its multi-modal sender cache, which
    # assumes a single feeder, must stay off.
    arguments.mm_processor_cache_gb = 0
    return arguments


class ServeArgumentParser(FlexibleArgumentParser):
    """Raises with the message instead of printing it to a stderr nobody reads."""

    def error(self, message: str) -> Any:
        raise ValueError(f"vLLM engine arguments: {message}")


OutputsHook = Callable[[EngineCoreOutputs], EngineCoreOutputs | None]


def intercept_outputs(llm: AsyncLLM, hook: OutputsHook) -> None:
    """Let `hook` see every EngineCoreOutputs before AsyncLLM does; it returns what is left for AsyncLLM, or None."""
    core = llm.engine_core
    receive: Callable[[], Awaitable[EngineCoreOutputs]] = core.get_output_async

    async def get_output_async() -> EngineCoreOutputs:
        while True:
            rest = hook(await receive())
            if rest is not None:
                return rest

    core.get_output_async = get_output_async
