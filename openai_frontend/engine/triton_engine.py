"""vLLM's EngineClient over engines that Triton runs."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from vllm.outputs import RequestOutput

from openai_frontend import adapters, vllm_seam
from openai_frontend.engine.control_operations import ControlOperations
from openai_frontend.engine.core_client import TritonCoreClient
from openai_frontend.engine_info import EngineInfo
from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas.fleet_control import FleetControl
from openai_frontend.replicas.replica import RECONNECT_INTERVAL_S, Replica
from openai_frontend.replicas.replica_metrics import ReplicaGauges
from openai_frontend.replicas.replicas import Replicas
from openai_frontend.streaming import fast_path
from openai_frontend.streaming.token_texts import remembering
from openai_frontend.vllm_seam import EngineDeadError, Executor, VllmConfig
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
        control_key: str | None = None,
        log_requests: bool = False,
        log_stats: bool = True,
        num_workers: int = 1,
    ) -> None:
        """Does not connect.

        triton_urls: host:port of each replica's gRPC endpoint.
        num_workers: front-end processes that share the port; they label vLLM's metrics.
        """
        core = TritonCoreClient(triton_urls, engine_info, self._fail_request)
        self._control = FleetControl(core.replicas, control_key)
        self._tasks: list[asyncio.Task[None]] = []
        with vllm_seam.core_client(core):
            super().__init__(vllm_config, Executor, log_stats, log_requests=log_requests, client_count=num_workers)
        if (tokenizer := self.renderer.tokenizer) is not None:
            vllm_seam.set_tokenizer(self.output_processor, remembering(tokenizer))

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
        """EngineUnavailable: vLLM's EngineDeadError is final, but an engine in Triton is started again."""
        return self.replicas.unavailable()

    async def check_health(self) -> None:
        """Raises EngineDeadError unless a replica may generate and answers."""
        try:
            await self.replicas.require()
        except EngineUnavailable as error:
            raise EngineDeadError() from error
        if all(replica.is_slow for replica in self.replicas.eligible()):
            raise EngineDeadError()

    # ---- generation ---------------------------------------------------------------------------------------------

    def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        """See AsyncLLM. Records the adapter for the response's headers."""
        adapters.note(kwargs.get("lora_request"))
        return super().generate(*args, **kwargs)

    async def add_request(self, *args: Any, **kwargs: Any) -> Any:
        """See AsyncLLM. Raises EngineUnavailable while no replica may generate."""
        await self.replicas.require()
        with self.engine_core.pinned_replica():
            queue = await super().add_request(*args, **kwargs)
        if (path := fast_path.current.get()) is not None:
            path.watch(queue)
        return queue

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """See AsyncLLM.

        A list of ids comes from a route: the requests' clients first get all tokens that were generated. A single id
        comes from `generate`, whose client has gone: the abort is sent at once.
        """
        if not isinstance(request_id, str):
            request_id = list(request_id)
            await self.engine_core.send_kept_tokens()
        await super().abort(request_id, internal)

    def _run_output_handler(self) -> None:
        """Start the task for the engines' outputs; also after it failed, which ended the requests of that time."""
        vllm_seam.forget_ended_output_handler(self)
        super()._run_output_handler()

    def _fail_request(self, request_id: str, error: TritonError) -> None:
        """End the request of a generation with `error`, and abort its other generations (n > 1)."""
        self.engine_core.abort_now(vllm_seam.fail_request(self.output_processor, request_id, error))
