"""vLLM's EngineClient over engines that Triton runs."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
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
from openai_frontend.engine.core_client import TritonCoreClient
from openai_frontend.engine_info import EngineInfo
from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.loop_lag import LoopLag
from openai_frontend.replicas.fleet_control import FleetControl
from openai_frontend.replicas.replica import RECONNECT_INTERVAL_S, Replica
from openai_frontend.replicas.replica_metrics import ReplicaGauges
from openai_frontend.replicas.replicas import Replicas
from openai_frontend.streaming import shortcut
from openai_frontend.streaming.token_texts import remembering

METRICS_INTERVAL_S = 0.25

# The trainer on whose behalf a control route runs, where it names itself (see routes/control.py).
lease_holder: ContextVar[str | None] = ContextVar("lease_holder", default=None)


class TritonEngineClient(AsyncLLM):
    """AsyncLLM whose engine core is in Triton, at one replica or several.

    What concerns an engine as a whole is a control operation: at all replicas at once, or, where weights change, at the
    only one (a trainer addresses several by itself).
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        triton_urls: Sequence[str],
        engine_info: EngineInfo,
        *,
        control_key: str | None = None,
        log_requests: bool = False,
        log_stats: bool = True,
        num_workers: int = 1,
    ) -> None:
        """Does not connect; see `start`. The attributes are those AsyncLLM.__init__ sets (a test compares them)."""
        self._tasks: list[asyncio.Task[None]] = []

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
            remembering(self.renderer.tokenizer) if self.renderer.tokenizer is not None else None,
            log_stats=log_stats,
            stream_interval=vllm_config.scheduler_config.stream_interval,
        )
        self.engine_core = TritonCoreClient(triton_urls, engine_info, self._fail_request)
        self._control = FleetControl(self.engine_core.replicas, control_key)
        self.logger_manager = None
        if log_stats:
            self.logger_manager = StatLoggerManager(
                vllm_config, engine_idxs=self.engine_core.engine_ranks_managed, client_count=num_workers
            )
            self.logger_manager.log_engine_initialized()
        self._client_count = num_workers
        self.output_handler = None
        self.profiler = None
        self._frontend_profiler_injected = False
        self._profile_lock = asyncio.Lock()
        self._profile_session_guard_enabled = False
        self._profile_session_active = False
        self._elastic_ep_lock = asyncio.Lock()

    # ---- the replicas -------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> Replicas[Replica]:
        return self.engine_core.replicas

    async def start(self, patience_s: float) -> None:
        """Connect, and stay connected until `close`. Raises EngineUnavailable if no replica is there in time."""
        # All at once before the first request: only then is it known which weights are the newest.
        await asyncio.gather(*(replica.connect() for replica in self.replicas.members))
        for replica in self.replicas.members:
            self._tasks.append(asyncio.create_task(replica.stay_connected(), name=f"replica-{replica.url}"))
        self._tasks.append(asyncio.create_task(self._publish_metrics(), name="replica-metrics"))
        self._tasks.append(asyncio.create_task(LoopLag().watch(), name="loop-lag"))
        deadline = time.monotonic() + patience_s
        while self.errored:
            if time.monotonic() > deadline:
                raise self.replicas.unavailable()
            await asyncio.sleep(RECONNECT_INTERVAL_S)

    async def close(self) -> None:
        self.shutdown()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self.replicas.members))

    async def _publish_metrics(self) -> None:
        gauges = ReplicaGauges()
        while True:
            gauges.publish(self.replicas)
            await asyncio.sleep(METRICS_INTERVAL_S)

    async def control(self, operation: str, payload: bytes | None = None, /, **arguments: Any) -> Any:
        """Run a control operation at the one replica, for the trainer whose request this is.

        Raises TritonError, and SeveralReplicas if there is more than one.
        """
        if (holder := lease_holder.get()) is not None:
            arguments["holder"] = holder
        return await self._control.one(operation, arguments, payload)

    async def control_all(self, operation: str, **arguments: Any) -> list[Any]:
        """Run a control operation at all replicas at once. Raises TritonError, which names the replica."""
        return await self._control.all(operation, arguments)

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
        """Version of the weights that serve, as of the newest message from the replicas."""
        return self.replicas.weight_version or self.replicas.committed

    @property
    def is_running(self) -> bool:
        return any(replica.is_connected for replica in self.replicas.members)

    @property
    def errored(self) -> bool:
        return not self.is_running

    @property
    def dead_error(self) -> BaseException:
        # vLLM's EngineDeadError is for good; ours comes back, and clients should try again.
        return self.replicas.unavailable()

    def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        adapters.note(kwargs.get("lora_request"))
        return super().generate(*args, **kwargs)

    async def add_request(self, *args: Any, **kwargs: Any) -> Any:
        """Raises EngineUnavailable while no replica may generate, and as AsyncLLM does."""
        await self.replicas.require()
        with self.engine_core.pinned_replica():
            queue = await super().add_request(*args, **kwargs)
        if (way := shortcut.current.get()) is not None:
            way.watch(queue)
        return queue

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """As AsyncLLM. A list comes from a route: whoever waits for these answers gets all that there is so far.

        A single id comes from `generate`, whose client has gone; nothing may come between that and the abort.
        """
        if not isinstance(request_id, str):
            request_id = list(request_id)
            await self.engine_core.send_kept_tokens()
        await super().abort(request_id, internal)

    def _run_output_handler(self) -> None:
        """One that has failed (a fault of vLLM's) has told its requests; the next request starts another."""
        if self.output_handler is not None and self.output_handler.done():
            self.output_handler = None
        super()._run_output_handler()

    async def check_health(self) -> None:
        """Raises EngineDeadError unless a replica may generate and answers."""
        try:
            await self.replicas.require()
        except EngineUnavailable as error:
            raise EngineDeadError() from error
        if all(replica.is_slow for replica in self.replicas.eligible()):
            raise EngineDeadError()

    # ---- EngineClient: control operations -----------------------------------------------------------------------

    async def pause_generation(self, *, mode: PauseMode = "abort", clear_cache: bool = True) -> None:
        if clear_cache:
            await self.renderer.clear_mm_cache_async()
        await self.control_all("pause_generation", mode=mode, clear_cache=clear_cache)

    async def resume_generation(self) -> None:
        await self.control_all("resume_generation")

    async def is_paused(self) -> bool:
        return all(answer["is_paused"] for answer in await self.control_all("is_paused"))

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
        return await self.change_version("finish_weight_update", weight_version=weight_version, **options)

    async def change_version(self, operation: str, **arguments: Any) -> Mapping[str, Any]:
        """Run a control operation after which another version serves."""
        result = await self.control(operation, **arguments)
        self.replicas.members[0].weight_version = result["weight_version"]
        return result

    async def update_weight_version(self, new_version: str) -> None:
        await self.control("update_weight_version", new_version=new_version)
        self.replicas.members[0].weight_version = new_version

    async def get_weight_version(self) -> str:
        """Asks the replicas, where `weight_version` is what this process was last told.

        Raises EngineUnavailable if none may generate.
        """
        await self._control.ask_versions()
        await self.replicas.require()
        version = self.replicas.weight_version
        if version is None:
            raise self.replicas.unavailable()
        return version

    async def get_replica_status(self) -> Mapping[str, Any]:
        """The one replica's own; of several a list, and what this front end makes of them."""
        if len(self.replicas.members) == 1:
            return await self.control("status")
        return await self._control.statuses()

    def get_world_size(self, *, include_dp: bool) -> int:
        """Workers of all replicas; one that was never reached counts as the first."""
        infos = [replica.engine_info for replica in self.replicas.members]
        return sum(each.world_size_across_dp if include_dp else each.world_size for each in infos)

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
        answers = await self.control_all(
            "reset_prefix_cache", reset_running_requests=reset_running_requests, reset_connector=reset_connector
        )
        return all(answer["ok"] for answer in answers)

    async def reset_mm_cache(self) -> None:
        await self.renderer.clear_mm_cache_async()
        await self.control_all("reset_mm_cache")

    async def reset_encoder_cache(self) -> None:
        await self.control_all("reset_encoder_cache")

    async def sleep(self, level: int = 1, mode: PauseMode = "abort") -> None:
        await self.control_all("sleep", level=level, mode=mode)

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        return all(answer["fully_awake"] for answer in await self.control_all("wake_up", tags=tags))

    async def is_sleeping(self) -> bool:
        return all(answer["is_sleeping"] for answer in await self.control_all("is_sleeping"))

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        answers = await self.control_all(
            "add_lora",
            lora_name=lora_request.lora_name,
            lora_int_id=lora_request.lora_int_id,
            lora_path=lora_request.lora_path,
        )
        return all(answer["added"] for answer in answers)

    async def remove_lora(self, lora_id: int) -> bool:
        return all(answer["removed"] for answer in await self.control_all("remove_lora", lora_id=lora_id))

    async def list_loras(self) -> set[int]:
        return set.intersection(*(set(answer["loras"]) for answer in await self.control_all("list_loras")))
