"""vLLM's EngineClient over engines that Triton runs."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams

from openai_frontend import adapters, vllm_seam
from openai_frontend.engine.control_operations import ControlOperations
from openai_frontend.engine.core_client import TritonCoreClient
from openai_frontend.engine.step_statistics import StepStatistics
from openai_frontend.engine_info import EngineInfo
from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.guards import admission
from openai_frontend.guards.fan_out import check_fan_out, check_queue
from openai_frontend.guards.limits import DEFAULTS, Limits
from openai_frontend.guards.nesting import check_nesting
from openai_frontend.guards.queue_time import QueueTimeProcessor
from openai_frontend.guards.sampling import check_sampling
from openai_frontend.guards.unread import LimitedQueue, ReadTooSlow
from openai_frontend.keys import Keys
from openai_frontend.replicas.fleet_control import FleetControl
from openai_frontend.replicas.replica import RECONNECT_INTERVAL_S, Replica
from openai_frontend.replicas.replica_metrics import ReplicaGauges
from openai_frontend.replicas.replicas import Replicas
from openai_frontend.served_error import ServedError
from openai_frontend.streaming import fast_path
from openai_frontend.streaming.token_texts import remembering
from openai_frontend.vllm_seam import (
    EngineDeadError,
    Executor,
    OutputProcessor,
    RequestOutputCollector,
    StatLoggerManager,
    VllmConfig,
)
from tritonlive.loop_lag import lag_histogram, watch_lag

METRICS_INTERVAL_S = 0.25


class TritonEngineClient(ControlOperations):
    """AsyncLLM whose engine core is in Triton, at one replica or several.

    Call `start` before the first request and `close` after the last one.
    """

    engine_core: TritonCoreClient

    def __init__(
        self,
        vllm_config: VllmConfig,
        triton_urls: Sequence[str],
        engine_info: EngineInfo,
        *,
        keys: Keys | None = None,
        log_requests: bool = False,
        log_stats: bool = True,
        num_workers: int = 1,
        limits: Limits = DEFAULTS,
    ) -> None:
        """Does not connect.

        triton_urls: host:port of each replica's gRPC endpoint.
        keys: those that the models were started with; None: the models ask for none, and control is off.
        num_workers: front-end processes that share the port; they label vLLM's metrics.
        """
        keys = keys or Keys()
        core = TritonCoreClient(triton_urls, engine_info, self._fail_request, keys.for_triton)
        self._control = FleetControl(core.replicas, keys.control)
        self._tasks: list[asyncio.Task[None]] = []
        self._limits = limits
        with vllm_seam.core_client(core):
            super().__init__(vllm_config, Executor, log_stats, log_requests=log_requests, client_count=num_workers)
        vllm_seam.leave_grammars_to_model(self)
        processor = self.output_processor
        if (tokenizer := self.renderer.tokenizer) is not None:
            vllm_seam.set_tokenizer(processor, remembering(tokenizer))
        vllm_seam.change_class(processor, OutputProcessor, QueueTimeProcessor, "the output processor")
        if (manager := self.logger_manager) is not None:
            statistics = vllm_seam.change_class(manager, StatLoggerManager, StepStatistics, "the stat loggers")
            core.on_step = lambda kept, timestamp: statistics.arrived(kept, timestamp, processor)

    # ---- life cycle ---------------------------------------------------------------------------------------------

    async def start(self, patience_s: float) -> None:
        """Connect, and stay connected until `close`.

        Raises EngineUnavailable if no replica can be reached within `patience_s`.
        """
        # All replicas before the first request: only then is it known which weights are the newest.
        await asyncio.gather(*(replica.connect() for replica in self.replicas.members))
        for replica in self.replicas.members:
            self._tasks.append(asyncio.create_task(replica.stay_connected(), name=f"replica-{replica.url}"))
        self._tasks.append(asyncio.create_task(self._publish_metrics(), name="replica-metrics"))
        self._tasks.append(asyncio.create_task(watch_lag(lag_histogram().observe), name="loop-lag"))
        deadline = time.monotonic() + patience_s
        while self.errored:
            if time.monotonic() > deadline:
                raise self.replicas.unavailable()
            await asyncio.sleep(RECONNECT_INTERVAL_S)

    async def close(self) -> None:
        """Disconnect. The engines in Triton go on."""
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

    # ---- state --------------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> Replicas[Replica]:
        return self.engine_core.replicas

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
        """503 with the replicas' reasons: vLLM's EngineDeadError is final, but an engine in Triton is started again."""
        return ServedError.of(self.replicas.unavailable())

    async def check_health(self) -> None:
        """Raises EngineDeadError unless a replica may generate and answers."""
        try:
            await self.replicas.require()
        except EngineUnavailable as error:
            raise EngineDeadError() from error
        if all(replica.is_slow for replica in self.replicas.eligible()):
            raise EngineDeadError()

    # ---- generation ---------------------------------------------------------------------------------------------

    def check_fan_out(self, num_prompts: int, n: int, *, prompts_field: str) -> None:
        """Raises VLLMValidationError for more prompts or answers than a request may have."""
        check_fan_out(self._limits, num_prompts, n, prompts_field=prompts_field)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """See AsyncLLM. Raises QueueFull, too, and VLLMValidationError for more answers than a request may have."""
        check_queue(self._limits, self.get_num_unfinished_requests(), n)
        super().check_admission(n, request_id)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """See AsyncLLM. Records the adapter for the response's headers.

        Raises VLLMValidationError at once, not at the first token: a stream's status is not sent yet.
        """
        check_sampling(sampling_params, kwargs.get("priority", 0))
        # vLLM checks everything at the first token, this part again. A grammar takes time, so it is not checked twice.
        sampling_params.verify(self.model_config, None, None, None)
        adapters.note(kwargs.get("lora_request"))
        return super().generate(prompt, sampling_params, *args, **kwargs)

    def encode(
        self, prompt: Any, pooling_params: PoolingParams, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """See AsyncLLM. Records the adapter for the response's headers."""
        adapters.note(kwargs.get("lora_request"))
        return super().encode(prompt, pooling_params, *args, **kwargs)

    async def add_request(self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        """See AsyncLLM. Raises ServedError with status 503 while no replica may generate."""
        admitted = admission.current.get()
        try:
            check_nesting(params)
            if isinstance(params, PoolingParams):  # one of a request's inputs: vLLM's routes do not ask how many
                check_queue(self._limits, self.get_num_unfinished_requests(), 1)
            await self._require_replica()
            with self.engine_core.pinned_replica():
                queue = await super().add_request(request_id, prompt, params, *args, **kwargs)
        except Exception as error:
            if admitted is not None:
                admitted.refuse(error)
            raise
        if (path := fast_path.current.get()) is not None:
            limited: LimitedQueue = path.watch(queue)
        else:
            limited = vllm_seam.change_class(queue, RequestOutputCollector, LimitedQueue, "the queue")
        limited.limit_unread(self._limits.max_unread_tokens, self._end_unread)
        if admitted is not None:
            admitted.watch(limited)
        return limited

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """See AsyncLLM.

        A list of ids comes from a route: the requests' clients first get all tokens that were generated. A single id
        comes from `generate`, whose client has gone: the abort is sent at once.
        """
        if not isinstance(request_id, str):
            request_id = list(request_id)
            await self.engine_core.send_kept_tokens()
        await super().abort(request_id, internal)

    async def _require_replica(self) -> None:
        try:
            await self.replicas.require()
        except EngineUnavailable as error:
            raise ServedError.of(error) from error

    def _end_unread(self, queue: LimitedQueue) -> None:
        error = ReadTooSlow(self._limits.max_unread_tokens)
        self.engine_core.abort_now(vllm_seam.fail_queue(self.output_processor, queue, error))

    def end_all(self, reason: str) -> None:
        """End all generations with EngineUnavailable: a stream's client gets an event, any other a 503."""
        for request_id in list(self.output_processor.request_states):
            self._fail_request(request_id, EngineUnavailable(reason))
            self.engine_core.abort_now([request_id])

    def _run_output_handler(self) -> None:
        """Start the task for the engines' outputs; also after it failed, which ended the requests of that time."""
        vllm_seam.forget_ended_output_handler(self)
        super()._run_output_handler()

    def _fail_request(self, request_id: str, error: TritonError | VLLMValidationError) -> None:
        """End the request of a generation with `error`, and abort its other generations (n > 1)."""
        served = ServedError.of(error) if isinstance(error, TritonError) else error
        self.engine_core.abort_now(vllm_seam.fail_request(self.output_processor, request_id, served))
