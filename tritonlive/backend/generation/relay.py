"""The front ends' engine traffic.

A front end runs vLLM's AsyncLLM with its process boundary to the engine core laid through Triton (see
core_client.py of the front end). It opens one channel, a request that stays open; its generations are requests of their
own, or a batch in one (Triton queues, batches, counts and cancels them), but their tokens travel together on the
channel: one message for each step of the engine, however many generations it served. That is what makes a token cheap:
the cost is a message, not its size. Tokens that the front end could do nothing with before the generation ends wait
here for it.

Messages are vLLM's own structs in vLLM's own encoding: in, EngineCoreRequests; out, a list of EngineCoreOutputs.
"""

import asyncio
import json
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tritonlive.backend.adapters.adapters import Adapters
from tritonlive.backend.engine import Engine, intercept_outputs
from tritonlive.backend.metrics import has_counts
from tritonlive.backend.responses import ResponseWriter, Sender, message_of
from tritonlive.backend.tensors import BadTensor, RequestError, Unavailable
from tritonlive.backend.weights.history import InFlight

from .generate import strings
from .generation import Batch, Generation

# A front end that does not say within so long that it knows of an adapter is not waited for.
SEEN_TIMEOUT_S = 10.0
# What says how much runs and waits, and nothing else, is told no more often.
GAUGES_INTERVAL_S = 0.1
# vLLM's encoder moves arrays above a threshold into frames of their own; a tensor is one frame.
ONE_FRAME = 1 << 62


class Channel:
    """A front end's return path: the response sender of its open request, and what waits to be sent."""

    def __init__(self, name: bytes, sender: Sender) -> None:
        self.name = name
        self.sender = sender
        self.generations: dict[str, Generation] = {}  # by request id
        # What the writer's thread has yet to send: a step's outputs, and the requests to close after them. A deque,
        # because its append and popleft are atomic: one thread fills it, another drains it.
        self.waiting: deque[tuple[EngineCoreOutputs, list[Sender]]] = deque()
        self.is_queued = False
        self.held: EngineCoreOutputs | None = None  # a step that brought gauges only
        self.seen = asyncio.Event()  # set while the front end knows which adapters serve


class Relay:
    """Takes engine requests from Triton to the engine core and its outputs back to the channels."""

    def __init__(self, engine: Engine, writer: ResponseWriter, adapters: Adapters, in_flight: InFlight) -> None:
        self._engine = engine
        self._adapters = adapters
        self._writer = writer
        self._in_flight = in_flight
        self.num_messages = 0  # sent on channels, with how many steps; both are the writer's thread's to write
        self.num_steps = 0
        self._channels: dict[bytes, Channel] = {}
        self._owners: dict[str, Channel] = {}  # request id → channel
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._encoder = MsgpackEncoder(size_threshold=ONE_FRAME)
        engine.on_start(self._attach_to)
        engine.on_death(self._fail_all)

    @property
    def num_generations(self) -> int:
        return len(self._owners)

    def open(self, name: bytes, sender: Sender) -> None:
        """Open channel `name`; a newer one of the same name takes over from a dead one."""
        if (old := self._channels.get(name)) is not None:
            self.close(old, RequestError("engine_channel: opened again by another request"))
        self._channels[name] = Channel(name, sender)
        # Says that the channel stands, so that the front end may send generations.
        opening = {"engine_outputs": as_tensor(msgspec.msgpack.encode([]))}
        self._writer.send(sender, opening | self._adapters_tensor(), final=False)

    async def add(self, channel_name: bytes, payloads: Sequence[bytes], sender: Sender) -> None:
        """Start the generations of one Triton request, which is closed when all of them have ended.

        The front end is told of those that are refused. Raises RequestError if one cannot even be read.
        """
        channel = self._open_channel(channel_name)
        try:
            requests: list[EngineCoreRequest] = [self._decoder.decode(payload) for payload in payloads]
        except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
            raise BadTensor("engine_request", f"is not an EngineCoreRequest: {error}") from None
        batch, refused, ended = Batch(sender, len(requests)), dict[str, str](), list[Sender]()
        for request in requests:
            try:
                await self._start(request, channel, batch)
            except RequestError as error:
                refused[request.request_id] = message_of(error)
                ended += batch.end_one()
        if refused:
            self._writer.send(sender, {"engine_refused": strings([json.dumps(refused)])}, final=False)
        self._finish(ended)

    async def _start(self, request: EngineCoreRequest, channel: Channel, batch: Batch) -> None:
        if self._open_channel(channel.name) is not channel:  # those before it took their time
            raise Unavailable("engine_channel: opened again by another request")
        if request.request_id in self._owners:
            raise BadTensor("engine_request", f"request id {request.request_id!r} is already running")
        params = self._engine.validate(request)
        if request.lora_request is not None:
            request.lora_request = self._adapters.resolve(request.lora_request)
        self._owners[request.request_id] = channel
        channel.generations[request.request_id] = Generation(batch, params)
        self._in_flight.begin(request.request_id)
        self._adapters.begin(request.request_id, request.lora_request)
        try:
            await self._engine.llm.engine_core.add_request_async(request)
        except EngineDeadError:
            if request.request_id in self._owners:
                self._forget(request.request_id)
            raise Unavailable("engine: died and is being started again; try again in a minute") from None

    def _open_channel(self, name: bytes) -> Channel:
        channel = self._channels.get(name)
        if channel is None:
            # Not the request's fault: it crossed the end of its channel on the way. The front end opens another.
            raise Unavailable(f"engine_channel: {name.decode(errors='replace')!r} is not open")
        return channel

    async def abort(self, channel_name: bytes, payload: bytes) -> None:
        """Give up generations of a channel. Ids that have ended already are passed over. Raises RequestError."""
        try:
            request_ids = msgspec.msgpack.decode(payload, type=list[str])
        except msgspec.MsgspecError as error:
            raise BadTensor("engine_abort", f"is not a list of request ids: {error}") from None
        channel = self._channels.get(channel_name)
        owned = [request_id for request_id in request_ids if channel and request_id in channel.generations]
        await self._abort(owned)

    def close(self, channel: Channel, reason: Exception | None = None) -> None:
        """End a channel and abort what still runs on it (its front end has gone, or lost its engine)."""
        if self._channels.get(channel.name) is channel:
            del self._channels[channel.name]
        channel.seen.set()  # nobody waits for it any more
        orphans = list(channel.generations)
        self._engine.loop.create_task(self._abort(orphans))
        if reason is None:
            self._writer.finish(channel.sender)
        else:
            self._writer.fail(channel.sender, reason)

    def channels(self) -> Iterable[Channel]:
        return tuple(self._channels.values())

    def announce(self, version: str) -> None:
        """Tell the front ends which weights serve from now on, before any token does."""
        self.flush()  # what the weights before have made
        for channel in self._channels.values():
            channel.waiting.append((EngineCoreOutputs(weight_version=version), []))
            self._flush(channel)

    def flush(self) -> None:
        """Send the tokens that wait for the end of their generations."""
        for channel in self._channels.values():
            for generation in channel.generations.values():
                for step in generation.flush():
                    channel.waiting.append((step, []))
            self._flush(channel)

    async def announce_adapters(self) -> None:
        """Tell the front ends which adapters serve from now on; returns when they know (see `seen`)."""
        waits: list[asyncio.Task[bool]] = []
        for channel in self.channels():
            channel.seen.clear()
            self._writer.send(channel.sender, self._adapters_tensor(), final=False)
            waits.append(asyncio.create_task(channel.seen.wait()))
        if waits:
            _, late = await asyncio.wait(waits, timeout=SEEN_TIMEOUT_S)
            for wait in late:
                wait.cancel()

    def seen(self, channel_name: bytes, serial: str) -> None:
        """A front end has taken the announcement of that serial."""
        channel = self._channels.get(channel_name)
        if channel is not None and serial == self._adapters.serial:
            channel.seen.set()

    def _adapters_tensor(self) -> dict[str, np.ndarray]:
        return {"engine_adapters": strings([self._adapters.announcement()])}

    async def _abort(self, request_ids: list[str]) -> None:
        # A generation may have ended since the ids were listed.
        request_ids = [request_id for request_id in request_ids if request_id in self._owners]
        ended = [sender for request_id in request_ids for sender in self._forget(request_id).end_one()]
        if request_ids and self._engine.is_running:
            await self._engine.llm.engine_core.abort_requests_async(request_ids)
        self._finish(ended)

    def _forget(self, request_id: str) -> Batch:
        channel = self._owners.pop(request_id)
        self._in_flight.end(request_id)
        self._adapters.end(request_id)
        return channel.generations.pop(request_id).batch

    def _finish(self, senders: Iterable[Sender]) -> None:
        for sender in senders:
            self._writer.finish(sender)

    def _attach_to(self, llm: AsyncLLM) -> None:
        intercept_outputs(llm, self._distribute)

    def _fail_all(self, reason: str) -> None:
        error = Unavailable(f"engine: {reason}")
        for channel in self.channels():
            for request_id in list(channel.generations):
                for sender in self._forget(request_id).end():
                    self._writer.fail(sender, error)
            self.close(channel, error)

    def _distribute(self, outputs: EngineCoreOutputs) -> EngineCoreOutputs | None:
        """Give each channel its part of a step; what is left belongs to the requests of this process."""
        parts: dict[bytes, tuple[list[EngineCoreOutput], list[Sender]]] = {}
        local: list[EngineCoreOutput] = []
        version = outputs.weight_version
        for output in outputs.outputs:
            request_id = output.request_id
            channel = self._owners.get(request_id)
            if channel is None:
                local.append(output)
                continue
            if self._channels.get(channel.name) is not channel:
                continue  # it was closed a moment ago; the abort of what ran on it is under way
            generation = channel.generations[request_id]
            if generation.keeps(output, version):
                continue
            for step in generation.flush(into=output, version=version):
                channel.waiting.append((step, []))
            part, finished = parts.setdefault(channel.name, ([], []))
            part.append(output)
            if output.finish_reason is not None:
                finished += self._forget(request_id).end_one()
        stats = outputs.scheduler_stats
        for channel in self._channels.values():
            part, finished = parts.get(channel.name, ([], []))
            if part or stats is not None:
                # Each front end reports the engine's statistics of its own replica, but counters (prefix cache hits)
                # must be counted once: they go to the first channel, as vLLM gives them to its first client.
                step = msgspec.structs.replace(outputs, outputs=part, scheduler_stats=stats)
                if part or has_counts(stats):
                    channel.held = None
                    channel.waiting.append((step, finished))
                    self._flush(channel)
                else:
                    self._hold(channel, step)
                stats = None
        return msgspec.structs.replace(outputs, outputs=local) if local else None

    def _hold(self, channel: Channel, step: EngineCoreOutputs) -> None:
        if channel.held is None:
            self._engine.loop.call_later(GAUGES_INTERVAL_S, self._send_held, channel)
        channel.held = step

    def _send_held(self, channel: Channel) -> None:
        step, channel.held = channel.held, None
        if step is not None and self._channels.get(channel.name) is channel:
            channel.waiting.append((step, []))
            self._flush(channel)

    def _flush(self, channel: Channel) -> None:
        # One job in the writer's queue at a time: what arrives while it waits travels in the same message.
        if not channel.is_queued:
            channel.is_queued = True
            self._writer.call(lambda: self._write(channel))

    def _write(self, channel: Channel) -> None:
        """On the writer's thread: send what waits on a channel, then close what it finished."""
        channel.is_queued = False
        steps: list[EngineCoreOutputs] = []
        finished: list[Sender] = []
        while channel.waiting:
            step, senders = channel.waiting.popleft()
            steps.append(step)
            finished += senders
        self._finish(finished)  # queued behind this, and whether or not it fails
        if steps:
            (payload,) = self._encoder.encode(steps)
            channel.sender.send({"engine_outputs": as_tensor(payload)}, final=False)
            self.num_messages += 1
            self.num_steps += len(steps)


def as_tensor(payload: Any) -> np.ndarray:
    """Bytes, or whatever has their buffer, as a uint8 tensor [1, len(payload)]."""
    return np.frombuffer(payload, dtype=np.uint8)[np.newaxis, :]
