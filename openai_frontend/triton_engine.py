"""vLLM's EngineClient over an engine that Triton runs."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.renderers import renderer_from_config
from vllm.v1.engine import PauseMode
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.loggers import StatLoggerManager

from openai_frontend import adapters
from openai_frontend.connection import TritonConnection
from openai_frontend.core_client import TritonCoreClient
from openai_frontend.errors import EngineUnavailable, TritonError

logger = logging.getLogger("tritonlive.frontend")

CONNECT_TIMEOUT_S = 10.0
RECONNECT_INTERVAL_S = 0.5
PROBE_INTERVAL_S = 15.0
PROBE_TIMEOUT_S = 45.0
# The engine answers between two steps; a long prefill on a CPU is one step.
HEALTH_TIMEOUT_S = 10.0
# The model has deadlines of its own for every operation; this one is for a model that does not answer at all.
CONTROL_TIMEOUT_S = 900.0

# The trainer on whose behalf a control route runs, where it names itself (see routes/control.py).
lease_holder: ContextVar[str | None] = ContextVar("lease_holder", default=None)


class TritonEngineClient(AsyncLLM):
    """AsyncLLM whose engine core is in Triton; what concerns the engine as a whole is a control operation."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        triton_url: str,
        *,
        control_key: str | None = None,
        log_requests: bool = False,
        log_stats: bool = True,
        num_workers: int = 1,
    ) -> None:
        """Does not connect; see `start`. The attributes are those AsyncLLM.__init__ sets (a test compares them)."""
        self._triton_url = triton_url
        self._control_key = control_key
        self._reconnecting: asyncio.Task[None] | None = None

        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.scheduler_config = vllm_config.scheduler_config
        self.observability_config = vllm_config.observability_config
        self.log_requests = log_requests
        self.log_stats = log_stats
        self.renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        self.admission_stats = None
        self.output_processor = OutputProcessor(
            self.renderer.tokenizer,
            log_stats=log_stats,
            stream_interval=vllm_config.scheduler_config.stream_interval,
        )
        self.engine_core = TritonCoreClient(self._fail_request)
        self.logger_manager = None
        if log_stats:
            self.logger_manager = StatLoggerManager(vllm_config, engine_idxs=[0], client_count=num_workers)
            self.logger_manager.log_engine_initialized()
        self._client_count = num_workers
        self.output_handler = None
        self.profiler = None
        self._frontend_profiler_injected = False
        self._profile_lock = asyncio.Lock()
        self._profile_session_guard_enabled = False
        self._profile_session_active = False
        self._elastic_ep_lock = asyncio.Lock()

    # ---- the connection -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, and stay connected until `close`. Raises EngineUnavailable when there is no engine now."""
        await self._connect()
        self._reconnecting = asyncio.create_task(self._stay_connected(), name="triton-reconnect")

    async def close(self) -> None:
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        self.shutdown()  # first: its output handler would report the end of the connection as a failure
        if self.engine_core.is_connected:
            await self.engine_core.connection.close()

    async def _connect(self) -> None:
        connection = await TritonConnection.connect(self._triton_url, CONNECT_TIMEOUT_S)
        try:
            await self.engine_core.attach(connection, CONNECT_TIMEOUT_S)
        except (TritonError, TimeoutError) as error:
            await connection.close()
            raise EngineUnavailable(str(error) or "the model did not open a channel") from None
        # The one of a lost connection has ended; the next request starts another.
        self.output_handler = None
        description = await connection.control("describe", {}, None, CONNECT_TIMEOUT_S)
        self.engine_core.weight_version = description["weight_version"]

    async def _stay_connected(self) -> None:
        while True:
            if self.engine_core.is_connected:
                reason = await self._until_lost(self.engine_core.connection)
                logger.warning("lost the engine (%s); connecting again", reason)
                if self.engine_core.is_connected:  # what was lost is not the stream itself
                    await self.engine_core.connection.close()
            try:
                await self._connect()
            except EngineUnavailable:
                await asyncio.sleep(RECONNECT_INTERVAL_S)
            else:
                logger.warning("connected to the engine again")

    async def _until_lost(self, connection: TritonConnection) -> str:
        """Returns why `connection` is no use any more: it, or the channel on it, was closed; or Triton is silent."""
        next_probe = time.monotonic() + PROBE_INTERVAL_S
        while True:
            handler = self.output_handler
            waits = [connection.closed, *([handler] if handler is not None else [])]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=RECONNECT_INTERVAL_S)
            if connection.closed.done():
                return connection.closed.result()
            if handler is not None and handler.done():
                return "its channel was closed"
            if time.monotonic() > next_probe:
                # A Triton on another machine can go without closing its sockets.
                try:
                    await connection.control("health", {}, None, PROBE_TIMEOUT_S)
                except EngineUnavailable as error:
                    return str(error)
                except TritonError:
                    pass  # it answers; that its engine is not well shows elsewhere
                next_probe = time.monotonic() + PROBE_INTERVAL_S

    async def control(self, operation: str, payload: bytes | None = None, /, **arguments: Any) -> Any:
        """Run a control operation with our key, for the trainer whose request this is. Raises TritonError."""
        if (holder := lease_holder.get()) is not None:
            arguments["holder"] = holder
        connection = self.engine_core.connection
        return await connection.control(operation, arguments, self._control_key, CONTROL_TIMEOUT_S, payload)

    def _fail_request(self, request_id: str, error: TritonError) -> None:
        """End one request with `error`; with n > 1 the others of the same request, too."""
        state = self.output_processor.request_states.get(request_id)
        if state is None or state.queue is None:
            return
        queue = state.queue
        parent = state.parent_req
        aborted = self.output_processor.abort_requests([parent.request_id if parent else request_id], internal=True)
        queue.put(error)
        self.engine_core.abort_now([other for other in aborted if other != request_id])

    # ---- EngineClient: whether there is an engine ---------------------------------------------------------------

    @property
    def weight_version(self) -> str | None:
        """Version of the weights that serve, as of the newest message from the engine."""
        return self.engine_core.weight_version

    @property
    def is_running(self) -> bool:
        return self.engine_core.is_connected

    @property
    def errored(self) -> bool:
        return not self.engine_core.is_connected

    @property
    def dead_error(self) -> BaseException:
        # vLLM's EngineDeadError is for good; ours comes back, and clients should try again.
        return EngineUnavailable("the connection to Triton is lost and being made again")

    def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        adapters.note(kwargs.get("lora_request"))
        return super().generate(*args, **kwargs)

    async def add_request(self, *args: Any, **kwargs: Any) -> Any:
        _ = self.engine_core.connection  # raises EngineUnavailable, where AsyncLLM would say EngineDeadError
        return await super().add_request(*args, **kwargs)

    async def check_health(self) -> None:
        """Raises EngineDeadError unless the engine process behind Triton answers."""
        try:
            await self.engine_core.connection.control("health", {}, None, HEALTH_TIMEOUT_S)
        except TritonError as error:
            raise EngineDeadError() from error

    # ---- EngineClient: control operations -----------------------------------------------------------------------

    async def pause_generation(self, *, mode: PauseMode = "abort", clear_cache: bool = True) -> None:
        if clear_cache:
            await self.renderer.clear_mm_cache_async()
        await self.control("pause_generation", mode=mode, clear_cache=clear_cache)

    async def resume_generation(self) -> None:
        await self.control("resume_generation")

    async def is_paused(self) -> bool:
        return (await self.control("is_paused"))["is_paused"]

    async def init_weight_transfer_engine(self, request: WeightTransferInitRequest) -> None:
        await self.control("init_weight_transfer_engine", init_info=request.init_info)

    async def shutdown_weight_transfer_engine(self) -> None:
        await self.control("shutdown_weight_transfer_engine")

    async def start_weight_update(self) -> None:
        await self.control("start_weight_update")

    async def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        await self.control("update_weights", update_info=request.update_info)

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        await self.commit_weight_update(weight_version)

    async def commit_weight_update(self, weight_version: str | None = None, **options: Any) -> Mapping[str, Any]:
        """`finish_weight_update` that tells what it did; `options` are those of the control operation."""
        result = await self.control("finish_weight_update", weight_version=weight_version, **options)
        self.engine_core.weight_version = result["weight_version"]
        return result

    async def update_weight_version(self, new_version: str) -> None:
        await self.control("update_weight_version", new_version=new_version)
        self.engine_core.weight_version = new_version

    async def get_weight_version(self) -> str:
        """Asks the engine, where `weight_version` is what this process was last told."""
        self.engine_core.weight_version = (await self.control("get_weight_version"))["weight_version"]
        return self.engine_core.weight_version

    async def get_replica_status(self) -> Mapping[str, Any]:
        return await self.control("status")

    async def get_weight_parameters(self) -> Mapping[str, Any]:
        return await self.control("parameters")

    async def compute_weight_checksums(self) -> list[dict[str, str]]:
        return (await self.control("compute_weight_checksums"))["checksums"]

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,  # noqa: ASYNC109 (vLLM's signature)
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> list[Any]:
        """Only what vLLM's RL routes need: any method by name is not for a network."""
        if method != "reset_weights":
            raise NotImplementedError(f"collective_rpc({method!r}) is not served over Triton")
        await self.control("reset_weights")
        return []

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        result = await self.control(
            "reset_prefix_cache", reset_running_requests=reset_running_requests, reset_connector=reset_connector
        )
        return result["ok"]

    async def reset_mm_cache(self) -> None:
        await self.renderer.clear_mm_cache_async()
        await self.control("reset_mm_cache")

    async def reset_encoder_cache(self) -> None:
        await self.control("reset_encoder_cache")

    async def sleep(self, level: int = 1, mode: PauseMode = "abort") -> None:
        await self.control("sleep", level=level, mode=mode)

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        return (await self.control("wake_up", tags=tags))["fully_awake"]

    async def is_sleeping(self) -> bool:
        return (await self.control("is_sleeping"))["is_sleeping"]

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        result = await self.control(
            "add_lora",
            lora_name=lora_request.lora_name,
            lora_int_id=lora_request.lora_int_id,
            lora_path=lora_request.lora_path,
        )
        return result["added"]

    async def remove_lora(self, lora_id: int) -> bool:
        return (await self.control("remove_lora", lora_id=lora_id))["removed"]

    async def list_loras(self) -> set[int]:
        return set((await self.control("list_loras"))["loras"])
