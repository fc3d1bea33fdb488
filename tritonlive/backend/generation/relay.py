"""Relays engine traffic between front ends and the engine core.

A front end runs vLLM's AsyncLLM and reaches the engine core through Triton (openai_frontend/engine/core_client.py). It
opens one channel: a request that stays open. Its generations are Triton requests, one each or several in a batch, so
that Triton queues, batches, counts and cancels them. Their tokens all travel on the channel: one message for each step
of the engine, however many generations the step served. A message costs the same whatever its size, so this makes a
token cheap. Tokens that a front end cannot use before their generation ends wait here (front_end_generation.py), and
their steps travel as counts.

Messages are vLLM's structs in vLLM's encoding: EngineCoreRequests come in, lists of EngineCoreOutputs go out.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from vllm.sampling_params import SamplingParams

from tritonlive.backend.adapters.adapters import Adapters
from tritonlive.backend.engine import Engine, EngineDied
from tritonlive.backend.grammars.grammars import Grammars
from tritonlive.backend.metrics import has_counts
from tritonlive.backend.output_tensors import Tensors, octets, strings
from tritonlive.backend.responses import ResponseWriter, Sender, message_of
from tritonlive.backend.tensors import BadTensor, RequestError, Unavailable
from tritonlive.backend.vllm_seam.core import abort_requests, add_request, intercept_outputs
from tritonlive.backend.vllm_seam.messages import (
    AsyncLLM,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineDeadError,
    RequestDecoder,
)
from tritonlive.backend.weights.history import InFlight
from tritonlive.wire.tensor_names import ENGINE_ABORT, ENGINE_ADAPTERS, ENGINE_OUTPUTS, ENGINE_REFUSED, ENGINE_REQUEST

from .channel_writer import ChannelWriter
from .engine_request import check_engine_request
from .failure import failure_of
from .front_end_channel import ChannelPart, FrontEndChannel
from .front_end_generation import FrontEndBatch, FrontEndGeneration

# A push of an adapter waits this long for front ends to confirm that they know the adapter.
SEEN_TIMEOUT_S = 10.0
NO_STEPS: Tensors = {ENGINE_OUTPUTS: octets(msgspec.msgpack.encode([]))}


class Relay:
    """Passes engine requests to the engine core, and its outputs to the channels."""

    def __init__(
        self, engine: Engine, writer: ResponseWriter, adapters: Adapters, in_flight: InFlight, grammars: Grammars
    ) -> None:
        self._engine = engine
        self._grammars = grammars
        self._adapters = adapters
        self._writer = writer
        self._in_flight = in_flight
        self.channel_writer = ChannelWriter(writer, engine.loop, self.close)
        self._channels: dict[bytes, FrontEndChannel] = {}
        self._owners: dict[str, FrontEndChannel] = {}  # by request id
        self._decoder = RequestDecoder()
        engine.on_start(self._attach_to)
        engine.on_death(self._fail_all)

    @property
    def num_generations(self) -> int:
        """Running generations of all front ends."""
        return len(self._owners)

    def open(self, name: bytes, sender: Sender) -> None:
        """Open channel `name`, or continue it on `sender` if it is open: its request so far ends then.

        Triton keeps every message of a request until the request ends, so front ends renew theirs from time to time.
        """
        if (channel := self._channels.get(name)) is not None:
            # The writer reads `channel.sender` for each message, and has sent all on the old one before it ends it.
            old, channel.sender = channel.sender, sender
            self._writer.send(old, NO_STEPS, final=True)  # Triton would not pass on a last response without tensors
            return
        self._channels[name] = FrontEndChannel(name, sender)
        # An empty list of steps tells the front end that the channel is open.
        self._writer.send(sender, NO_STEPS | self._adapters_tensor(), final=False)

    async def add(self, channel_name: bytes, payloads: Sequence[bytes], sender: Sender) -> None:
        """Start the generations of one Triton request. The request is closed when all of them have ended.

        Generations that are refused are reported in engine_refused. Raises RequestError if a payload cannot be decoded.
        """
        channel = self._open_channel(channel_name)
        try:
            requests = [self._decoder.decode(payload) for payload in payloads]
        except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
            raise BadTensor(ENGINE_REQUEST, f"is not an EngineCoreRequest: {error}") from None
        batch, refused, ended = FrontEndBatch(sender, len(requests)), dict[str, str](), list[Sender]()
        for request in requests:
            try:
                await self._start(request, channel, batch)
            except RequestError as error:
                refused[request.request_id] = message_of(error)
                ended += batch.end_one()
        self._send_refused(sender, refused)
        self._finish(ended)

    def _send_refused(self, sender: Sender, refused: Mapping[str, str]) -> None:
        if refused:
            self._writer.send(sender, {ENGINE_REFUSED: strings([json.dumps(refused)])}, final=False)

    async def _start(self, request: EngineCoreRequest, channel: FrontEndChannel, batch: FrontEndBatch) -> None:
        # The channel may have been closed, and opened again, while earlier requests of the batch were awaited.
        if self._open_channel(channel.name) is not channel:
            raise Unavailable("engine_channel: was closed and opened again")
        if request.request_id in self._owners:
            raise BadTensor(ENGINE_REQUEST, f"request id {request.request_id!r} is already running")
        params = check_engine_request(self._engine, request)
        to_admit = params if isinstance(params, SamplingParams) and not self._grammars.admit_known(params) else None
        if request.lora_request is not None:
            request.lora_request = self._adapters.resolve(request.lora_request)
        self._owners[request.request_id] = channel
        generation = channel.generations[request.request_id] = FrontEndGeneration(batch, params)
        self._in_flight.begin(request.request_id)
        self._adapters.begin(request.request_id, request.lora_request)
        if to_admit is None:
            await self._add_to_engine(request)
        else:  # a new grammar; the rest of the batch does not wait for it
            generation.admission = asyncio.create_task(self._admit(request, generation, to_admit))

    async def _admit(self, request: EngineCoreRequest, generation: FrontEndGeneration, params: SamplingParams) -> None:
        """Hand the request to the engine when its grammar is admitted. An abort cancels this task."""
        try:
            await self._grammars.admit(params)
            generation.admission = None  # from here on an abort goes to the engine
            await self._add_to_engine(request)
        except RequestError as error:
            if request.request_id in self._owners:
                self._fail(request.request_id, error)

    def _fail(self, request_id: str, error: RequestError) -> None:
        """End a generation that has begun with `error`."""
        batch = self._forget(request_id)
        self._send_refused(batch.sender, {request_id: message_of(error)})
        self._finish(batch.end_one())

    async def _add_to_engine(self, request: EngineCoreRequest) -> None:
        try:
            await add_request(self._engine.llm, request)
        except EngineDeadError:
            if request.request_id in self._owners:
                self._forget(request.request_id)
            raise EngineDied from None

    def _open_channel(self, name: bytes) -> FrontEndChannel:
        channel = self._channels.get(name)
        if channel is None:
            # The request is not at fault: its channel was closed while it travelled. The front end opens another.
            raise Unavailable(f"engine_channel: {name.decode(errors='replace')!r} is not open")
        return channel

    async def abort(self, channel_name: bytes, payload: bytes) -> None:
        """Abort generations of a channel; ids of ended generations are ignored. Raises RequestError."""
        try:
            request_ids = msgspec.msgpack.decode(payload, type=list[str])
        except msgspec.MsgspecError as error:
            raise BadTensor(ENGINE_ABORT, f"is not a list of request ids: {error}") from None
        channel = self._channels.get(channel_name)
        owned = [request_id for request_id in request_ids if channel and request_id in channel.generations]
        await self._abort(owned)

    def close(self, channel: FrontEndChannel, reason: Exception | None = None) -> None:
        """Close an open channel and abort its generations: its front end has gone, or the engine has died."""
        if self._channels.get(channel.name) is not channel:
            return
        del self._channels[channel.name]
        channel.held = None
        channel.seen.set()  # announce_adapters must not wait for it
        orphans = list(channel.generations)
        self._engine.loop.create_task(self._abort(orphans))
        if reason is None:
            self._writer.finish(channel.sender)
        else:
            self._writer.fail(channel.sender, reason)

    def channels(self) -> Iterable[FrontEndChannel]:
        """The open channels."""
        return tuple(self._channels.values())

    def announce(self, version: str) -> None:
        """Send the version that serves from now on to all front ends, before any of its tokens."""
        self.flush()  # tokens of the version before
        for channel in self._channels.values():
            channel.add(EngineCoreOutputs(weight_version=version))
            self.channel_writer.flush(channel)

    def flush(self) -> None:
        """Send all tokens that wait for the end of their generations."""
        for channel in self._channels.values():
            for generation in channel.generations.values():
                for step in generation.flush():
                    channel.add(step)
            self.channel_writer.flush(channel)

    async def announce_adapters(self) -> None:
        """Send the adapters that serve from now on; returns when every front end has confirmed (`seen`) or is late."""
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
        """Note that a front end knows the adapters announced with `serial`."""
        channel = self._channels.get(channel_name)
        if channel is not None and serial == self._adapters.serial:
            channel.seen.set()

    def _adapters_tensor(self) -> Tensors:
        return {ENGINE_ADAPTERS: strings([self._adapters.announcement()])}

    async def _abort(self, request_ids: list[str]) -> None:
        # Generations may have ended since the ids were listed.
        request_ids = [request_id for request_id in request_ids if request_id in self._owners]
        ended = [sender for request_id in request_ids for sender in self._forget(request_id).end_one()]
        if request_ids and self._engine.is_running:
            await abort_requests(self._engine.llm, request_ids)
        self._finish(ended)

    def _forget(self, request_id: str) -> FrontEndBatch:
        channel = self._owners.pop(request_id)
        self._in_flight.end(request_id)
        self._adapters.end(request_id)
        generation = channel.generations.pop(request_id)
        if generation.admission is not None and generation.admission is not asyncio.current_task():
            generation.admission.cancel()
        return generation.batch

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
        """Queue each channel's part of a step. Returns the rest, which belongs to requests of this process."""
        parts: dict[bytes, ChannelPart] = {}
        local: list[EngineCoreOutput] = []
        version = outputs.weight_version
        for output in outputs.outputs:
            request_id = output.request_id
            channel = self._owners.get(request_id)
            if channel is None:
                local.append(output)
                continue
            if self._channels.get(channel.name) is not channel:
                continue  # the channel was closed, and the abort of its generations is under way
            generation = channel.generations[request_id]
            if (error := failure_of(output, pools=generation.pools)) is not None:
                self._fail(request_id, error)
                continue
            num_tokens = len(output.new_token_ids)
            if generation.keeps(output, version, outputs.timestamp):
                channel.count_kept(outputs.timestamp, num_tokens, generation.latency)
                continue
            part = parts.setdefault(channel.name, ChannelPart())
            if (kept := generation.kept) is not None:
                if steps := list(generation.flush(into=output, version=version)):
                    for step in steps:
                        channel.add(step)
                else:
                    part.released[request_id] = kept
            part.outputs.append(output)
            if output.finish_reason is not None:
                part.finished += self._forget(request_id).end_one()
        stats = outputs.scheduler_stats
        for channel in self._channels.values():
            part = parts.get(channel.name)
            # Statistics carry counters (prefix cache hits), which must be counted once. So they go to the first
            # channel only, as vLLM sends them to its first client.
            if part is not None or has_counts(stats):
                part = part or ChannelPart()
                step = msgspec.structs.replace(outputs, outputs=part.outputs, scheduler_stats=stats)
                channel.held = None
                channel.add(step, part.finished, part.released)
                self.channel_writer.flush(channel)
            elif stats is not None or channel.kept_steps:
                # Without a version, because a version alone announces a commit.
                held = EngineCoreOutputs(scheduler_stats=stats, timestamp=outputs.timestamp)
                self.channel_writer.hold(channel, held)
            stats = None
        return msgspec.structs.replace(outputs, outputs=local) if local else None
