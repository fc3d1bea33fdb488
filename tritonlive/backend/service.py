"""Takes Triton's batches of requests onto the engine's loop and serves each request by its kind."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils

from tritonlive.loop_lag import LargestLag, watch_lag
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.operations import PUBLIC_OPERATIONS
from tritonlive.wire.tensor_names import (
    CONTROL_OPERATION,
    CONTROL_RESULT,
    ENGINE_ABORT,
    ENGINE_CHANNEL,
    ENGINE_REQUEST,
    ENGINE_SEEN,
    MIN_WEIGHT_VERSION,
    TEXT_INPUT,
)
from tritonlive.wire.versions import staleness_reason

from .access import Access
from .adapters.adapters import Adapters
from .control import Control
from .engine import Engine
from .garbage import RequestGarbage
from .generation.native_request import NativeRequest, read_request
from .generation.native_runs import NativeRuns
from .generation.relay import Relay
from .generation_statistics import GenerationStatistics
from .grammars.compiler_client import CompilerClient
from .grammars.grammars import Grammars
from .metrics import SendingStatistics, Statistics
from .model_metrics import ModelMetrics
from .output_tensors import strings
from .responses import ResponseWriter, Sender
from .tensors import BadTensor, Conflict, RequestError, read_batch, read_bytes, read_string
from .vllm_seam.core import intercept_outputs, metric_buckets, watch_requests
from .vllm_seam.messages import AsyncLLM
from .vllm_seam.structured_outputs import leave_to_us
from .weights.history import InFlight, WeightStatistics
from .weights.weights import Weights

# A client that has gone keeps the engine busy at most this long. Each look costs one message per native request.
CANCELLATION_INTERVAL_S = 0.25
METRICS_INTERVAL_S = 0.25


class Service:
    """The model, independent of Triton's calling conventions."""

    def __init__(self, engine: Engine, writer: ResponseWriter, compiler: CompilerClient) -> None:
        self._engine = engine
        self._compiler = compiler
        self._writer = writer
        self._access = Access(engine.settings)
        self._statistics = Statistics()
        self._generations = GenerationStatistics()
        self._metrics = ModelMetrics(engine.settings.model_version)
        self._lag = LargestLag()
        self._garbage = RequestGarbage(writer)
        self._in_flight = InFlight()
        # The last hook sees outputs last, and the relay's hook removes those of front ends. So this one comes first.
        engine.on_start(self._observe)
        self._adapters = Adapters(engine, lambda: self._relay.announce_adapters())
        engine.on_start(leave_to_us)
        self._grammars = Grammars(
            compiler, engine.settings.grammar_limits, lambda: self._weights.replica.check_can_generate()
        )
        self._relay = Relay(engine, writer, self._adapters, self._in_flight, self._grammars)
        self._natives = NativeRuns(engine, writer, self._adapters, self._in_flight, self._grammars)
        engine.on_death(self._statistics.engine_died)
        engine.on_death(self._generations.engine_died)
        self._weights = Weights(engine, self._announce)
        self._control = Control(engine, self._weights, self._adapters, self._in_flight, self._relay.flush)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start the engine; returns when it can generate. Raises what vLLM raises."""
        self._engine.run(self._start_compiler())  # beside the engine, so that the first grammar need not wait
        self._engine.start()
        self._metrics.register(self._generations)
        self._engine.run(self._watch_cancellations())
        self._engine.run(self._keep_house())
        self._engine.run(watch_lag(self._lag.observe))

    def stop(self) -> None:
        """Stop the engine, remove the adapters' files, and send the responses that are queued."""
        try:
            self._engine.stop()
        finally:
            self._compiler.stop()
            self._adapters.close()
            self._writer.close()

    @property
    def is_ready(self) -> bool:
        """Whether there is an engine that can generate."""
        return self._engine.is_running

    async def _start_compiler(self) -> None:
        self._compiler.start()

    def submit(self, requests: Sequence[Any]) -> None:
        """Pass a batch of Triton requests to the engine's loop in one hop, from any thread."""
        self.take([(request, Sender(request.get_response_sender())) for request in requests])

    def take(self, batch: Sequence[tuple[Any, Sender]]) -> None:
        """Pass requests with their senders to the engine's loop in one hop, from any thread."""
        self._engine.loop.call_soon_threadsafe(self._dispatch, batch)

    def _dispatch(self, batch: Sequence[tuple[Any, Sender]]) -> None:
        for request, sender in batch:
            task = asyncio.create_task(self._serve(request, sender))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Any, sender: Sender) -> None:
        """Serve one request; every request gets a last response, whatever happens."""
        try:
            channels = read_batch(request, ENGINE_CHANNEL)
            if channels is not None:
                await self._serve_front_end(request, sender, channels[0])
            elif (operation := read_string(request, CONTROL_OPERATION)) is not None:
                await self._serve_control(request, sender, operation)
            else:
                self._access.require_inference(request)
                await self._serve_native(read_request(request), sender)
        except RequestError as error:
            self._writer.fail(sender, error)
        except asyncio.CancelledError:
            self._writer.fail(sender, RequestError("the client has gone", ErrorCode.CANCELLED))
        except Exception as error:  # a fault of ours must reach the client, not leave it waiting
            pb_utils.Logger.log_error(f"a request failed: {error!r}")
            self._writer.fail(sender, error)

    async def _serve_front_end(self, request: Any, sender: Sender, channel: bytes) -> None:
        if (payloads := read_batch(request, ENGINE_REQUEST)) is not None:
            self._weights.replica.check_can_generate()
            await self._relay.add(channel, payloads, sender)
        elif (payload := read_bytes(request, ENGINE_ABORT)) is not None:
            await self._relay.abort(channel, payload)
            self._writer.finish(sender)
        elif (serial := read_string(request, ENGINE_SEEN)) is not None:
            self._relay.seen(channel, serial)
            self._writer.finish(sender)
        else:
            # Later requests name the channel, which nobody else can guess, and need no key.
            self._access.require_inference(request)
            _ = self._engine.llm  # without an engine a channel is of no use: the front end tries again
            self._relay.open(channel, sender)

    async def _serve_control(self, request: Any, sender: Sender, operation: str) -> None:
        try:
            result = await self._control.run(request)
        finally:  # marked after the call: it may outlast the next collection
            if operation not in PUBLIC_OPERATIONS:  # probes, which come all the time, do not count
                self._garbage.mark()
        self._writer.send(sender, {CONTROL_RESULT: strings([result])}, final=True)

    async def _serve_native(self, request: NativeRequest, sender: Sender) -> None:
        self._weights.replica.check_can_generate()
        task = asyncio.current_task()
        if task is None:
            raise BadTensor(TEXT_INPUT, "served outside a task")
        if request.min_weight_version is not None:
            reason = staleness_reason(await self._weights.version(), request.min_weight_version)
            if reason is not None:
                raise Conflict(f"{MIN_WEIGHT_VERSION}: {reason}")
        await self._natives.run(request, sender, task)

    def _observe(self, llm: AsyncLLM) -> None:
        """Count what goes into the engine and what comes back."""
        self._generations.begin(partial(metric_buckets, llm))
        watch_requests(llm, self._generations.added, self._generations.aborted)
        intercept_outputs(llm, lambda outputs: self._generations.observe(self._statistics.observe(outputs)))

    def _announce(self, version: str) -> None:
        self._in_flight.version = version
        self._relay.announce(version)

    async def _watch_cancellations(self) -> None:
        """Abort requests that clients have cancelled. Triton marks them without a notice, so they are polled."""
        while True:
            await asyncio.sleep(CANCELLATION_INTERVAL_S)
            for channel in self._relay.channels():
                if await self._writer.is_cancelled(channel.sender):
                    self._relay.close(channel)
            await self._natives.cancel_abandoned()

    async def _keep_house(self) -> None:
        """Collect garbage while nothing runs, and publish metrics."""
        num_restarts = -1
        while True:
            if num_restarts != self._engine.num_restarts:
                num_restarts = self._engine.num_restarts
                self._garbage.freeze()
            await asyncio.sleep(METRICS_INTERVAL_S)
            if len(self._natives) or self._relay.num_generations:
                self._garbage.mark()
            else:
                self._statistics.idle()
                await self._garbage.collect()
            self._publish_metrics()

    def _publish_metrics(self) -> None:
        sent = self._relay.channel_writer
        sending = SendingStatistics(self._lag.max_s, self._writer.queue_length, sent.num_messages, sent.num_steps)
        weights = WeightStatistics.of(self._weights.history, self._in_flight)
        self._writer.call(self._metrics.publication(self._statistics, sending, weights, self._generations))
