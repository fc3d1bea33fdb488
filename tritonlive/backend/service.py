"""Takes Triton's batches of requests onto the engine's loop and serves each by its kind."""

import asyncio
import gc
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import triton_python_backend_utils as pb_utils

from tritonlive.loop_lag import LargestLag, watch_lag
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.operations import PUBLIC_OPERATIONS
from tritonlive.wire.tensor_names import CONTROL_OPERATION, CONTROL_RESULT, MIN_WEIGHT_VERSION
from tritonlive.wire.versions import staleness_reason

from .adapters.adapters import Adapters
from .control import Control
from .engine import Engine, intercept_outputs
from .generation.generate import NativeRequest, generate, read_request, strings
from .generation.relay import Relay
from .generation.token_level import TokenLevel
from .metrics import (
    DESCRIPTIONS,
    SENDING_DESCRIPTIONS,
    WEIGHT_DESCRIPTIONS,
    SendingStatistics,
    Statistics,
    TritonMetrics,
)
from .responses import ResponseWriter, Sender
from .tensors import BadTensor, Conflict, RequestError, read_batch, read_bytes, read_string
from .weights.history import InFlight, WeightStatistics
from .weights.weights import Weights

# How long a client that has gone may keep the engine busy; each look costs one message per native request.
CANCELLATION_INTERVAL_S = 0.25
METRICS_INTERVAL_S = 0.25


class Service:
    """The model, apart from Triton's calling conventions."""

    def __init__(self, engine: Engine, writer: ResponseWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._statistics = Statistics()
        self._metrics = TritonMetrics("vllm", DESCRIPTIONS)
        self._own_metrics = TritonMetrics("tritonlive", SENDING_DESCRIPTIONS | WEIGHT_DESCRIPTIONS)
        self._lag = LargestLag()
        self._in_flight = InFlight()
        # Before the relay's hook: it takes the front ends' outputs away.
        self._engine.on_start(lambda llm: intercept_outputs(llm, self._statistics.observe))
        self._adapters = Adapters(self._engine, lambda: self._relay.announce_adapters())
        self._relay = Relay(self._engine, self._writer, self._adapters, self._in_flight)
        self._token_level = TokenLevel(self._engine)
        self._engine.on_death(self._statistics.engine_died)
        self._weights = Weights(self._engine, self._announce)
        self._control = Control(self._engine, self._weights, self._adapters, self._in_flight, self._relay.flush)
        self._natives: dict[asyncio.Task[None], Sender] = {}  # running native requests
        self._tasks: set[asyncio.Task[None]] = set()
        self._may_have_garbage = False  # of requests; probes, which come all the time, do not count

    def start(self) -> None:
        self._engine.start()
        self._engine.run(self._watch_cancellations())
        self._engine.run(self._publish_metrics())
        self._engine.run(watch_lag(self._lag.observe))

    def stop(self) -> None:
        try:
            self._engine.stop()
        finally:
            self._adapters.close()
            self._writer.close()

    def submit(self, requests: Sequence[Any]) -> None:
        """Hand a batch over to the engine's loop in one hop."""
        batch = [(request, Sender(request.get_response_sender())) for request in requests]
        self._engine.loop.call_soon_threadsafe(self._dispatch, batch)

    def _dispatch(self, batch: Sequence[tuple[Any, Sender]]) -> None:
        for request, sender in batch:
            task = asyncio.create_task(self._serve(request, sender))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Any, sender: Sender) -> None:
        try:
            channels = read_batch(request, "engine_channel")
            if channels is not None:
                await self._serve_front_end(request, sender, channels[0])
            elif (operation := read_string(request, CONTROL_OPERATION)) is not None:
                try:
                    result = await self._control.run(request)
                finally:  # not before: a call may outlast the next look for garbage
                    self._may_have_garbage |= operation not in PUBLIC_OPERATIONS
                self._writer.send(sender, {CONTROL_RESULT: strings([result])}, final=True)
            else:
                await self._serve_native(read_request(request), sender)
        except RequestError as error:
            self._writer.fail(sender, error)
        except asyncio.CancelledError:
            self._writer.fail(sender, RequestError("the client has gone", ErrorCode.CANCELLED))
        except Exception as error:  # a fault of ours must reach the client, not leave it waiting
            pb_utils.Logger.log_error(f"a request failed: {error!r}")
            self._writer.fail(sender, error)

    async def _serve_front_end(self, request: Any, sender: Sender, channel: bytes) -> None:
        if (payloads := read_batch(request, "engine_request")) is not None:
            self._weights.replica.check_can_generate()
            await self._relay.add(channel, payloads, sender)
        elif (payload := read_bytes(request, "engine_abort")) is not None:
            await self._relay.abort(channel, payload)
            self._writer.finish(sender)
        elif (serial := read_string(request, "engine_seen")) is not None:
            self._relay.seen(channel, serial)
            self._writer.finish(sender)
        else:
            _ = self._engine.llm  # a channel is no use without an engine: the front end tries again
            self._relay.open(channel, sender)

    async def _serve_native(self, request: NativeRequest, sender: Sender) -> None:
        self._weights.replica.check_can_generate()
        task = asyncio.current_task()
        if task is None:
            raise BadTensor("text_input", "served outside a task")
        if request.min_weight_version is not None:
            reason = staleness_reason(await self._weights.version(), request.min_weight_version)
            if reason is not None:
                raise Conflict(f"{MIN_WEIGHT_VERSION}: {reason}")
        adapter = self._adapters.find(request.lora_name) if request.lora_name is not None else None
        self._natives[task] = sender
        self._in_flight.begin(task)
        self._adapters.begin(task, adapter)
        request_id = f"triton-{uuid.uuid4().hex[:16]}"
        try:
            if not request.return_text:
                tensors = await self._token_level.generate(request, request_id, adapter)
                self._writer.send(sender, tensors, final=True)
                return
            async for tensors, is_last in generate(self._engine.llm, request, request_id, adapter):
                self._writer.send(sender, tensors, final=is_last)
                await self._writer.caught_up()
        finally:
            del self._natives[task]
            self._in_flight.end(task)
            self._adapters.end(task)

    def _announce(self, version: str) -> None:
        self._in_flight.version = version
        self._relay.announce(version)

    async def _watch_cancellations(self) -> None:
        """Abort what nobody waits for any more: Triton marks such requests, and does not tell."""
        while True:
            await asyncio.sleep(CANCELLATION_INTERVAL_S)
            for channel in self._relay.channels():
                if await self._writer.is_cancelled(channel.sender):
                    self._relay.close(channel)
            for task, sender in list(self._natives.items()):
                if await self._writer.is_cancelled(sender):
                    task.cancel()

    async def _publish_metrics(self) -> None:
        gc.collect()
        gc.freeze()  # vLLM's own objects stay: looking for garbage among the rest is cheap
        while True:
            await asyncio.sleep(METRICS_INTERVAL_S)
            if self._natives or self._relay.num_generations:
                self._may_have_garbage = True
            else:
                self._statistics.idle()
                if self._may_have_garbage:
                    # Triton does not unload a model while one of its response senders lives, and an error's
                    # traceback can keep one in a cycle.
                    self._may_have_garbage = False
                    await self._writer.drained()  # an answer that waits to be sent is not garbage yet
                    gc.collect()
            sending = SendingStatistics(
                self._lag.max_s, self._writer.queue_length, self._relay.num_messages, self._relay.num_steps
            )
            own = asdict(sending) | asdict(WeightStatistics.of(self._weights.history, self._in_flight))
            self._writer.call(lambda: self._metrics.publish(asdict(self._statistics)))
            self._writer.call(lambda own=own: self._own_metrics.publish(own))
