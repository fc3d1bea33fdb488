"""A front end's channel to one replica: its generations go out on it, and their tokens come back.

The other end is tritonlive/backend/generation/relay.py. Messages are vLLM's own structs in its encoding:
EngineCoreRequests out, lists of EngineCoreOutputs in. Generations that begin in one turn of the loop share one batched
Triton request, so that its cost is paid once when many requests arrive together.
"""

import asyncio
import json
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas.connection import Contents, TritonConnection
from openai_frontend.replicas.step import DecodeSteps, Step
from tritonlive.wire.limits import MAX_BATCH
from tritonlive.wire.tensor_names import (
    ENGINE_ABORT,
    ENGINE_ADAPTERS,
    ENGINE_CHANNEL,
    ENGINE_OUTPUTS,
    ENGINE_REFUSED,
    ENGINE_REQUEST,
    ENGINE_SEEN,
)
from tritonlive.wire.triton_tensors import read_strings

# Triton keeps every message of a request until the request ends (1.7 KB each, measured with 2.51, and the message).
# So the channel continues on a new request after so many messages or bytes.
RENEW_AFTER_MESSAGES = 1000
RENEW_AFTER_BYTES = 8 * 2**20
# The model's first message on a channel, and its last one on a request that the channel has left.
NO_STEPS = msgspec.msgpack.encode([])


@dataclass(frozen=True)
class ChannelCallbacks:
    """Functions that a channel calls with what arrives on it."""

    on_step: Callable[[Step], None]
    """Gets every step of the engine that concerns the channel."""
    on_error: Callable[[str, TritonError], None]
    """Gets the id of a generation that the model refused or gave up, and the reason."""
    on_adapters: Callable[[str], str]
    """Gets the model's announcement of its LoRA adapters; returns the announcement's serial."""


@dataclass(frozen=True)
class RequestBatch:
    """Generations that travel as one Triton request."""

    request_id: str
    running: set[str]
    """Ids of the generations that have not ended."""


@dataclass(eq=False)
class ChannelRequest:
    """A Triton request on which a channel's messages come."""

    request_id: str
    num_messages: int = 0
    num_bytes: int = 0
    held: list[Contents] = field(default_factory=list)
    """Messages that came before the end of the request before this one."""

    @property
    def is_used_up(self) -> bool:
        return self.num_messages >= RENEW_AFTER_MESSAGES or self.num_bytes >= RENEW_AFTER_BYTES


class ReplicaChannel:
    """Made by `open`. `closed` gets the reason when the model closes it, or when its connection ends."""

    def __init__(self, connection: TritonConnection, callbacks: ChannelCallbacks, decode_steps: DecodeSteps) -> None:
        self.connection = connection
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._name = f"front-end-{uuid.uuid4().hex}"
        self._callbacks = callbacks
        self._is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests: deque[ChannelRequest] = deque()  # two while the channel changes over to a new one
        self._num_requests = 0
        self._decode_steps = decode_steps
        self._waiting: dict[str, bytes] = {}  # encoded EngineCoreRequests, for the end of this turn of the loop
        self._batches: dict[str, RequestBatch] = {}  # by the id of a generation that has not ended
        connection.closed.add_done_callback(lambda closed: self.close(closed.result()))

    @classmethod
    async def open(
        cls, connection: TritonConnection, callbacks: ChannelCallbacks, decode_steps: DecodeSteps, timeout_s: float
    ) -> "ReplicaChannel":
        """Open a channel on `connection`. decode_steps: decodes the steps of a message.

        Raises TritonError as the model answers, EngineUnavailable when it does not within `timeout_s`.
        """
        channel = cls(connection, callbacks, decode_steps)
        channel._send_opening()
        try:
            async with asyncio.timeout(timeout_s):  # wait_for swallows a cancellation that comes with the answer
                await channel._is_open
        except TimeoutError:
            raise EngineUnavailable("the model did not open a channel") from None
        return channel

    @property
    def is_open(self) -> bool:
        return not self.closed.done() and not self.connection.closed.done()

    def close(self, reason: str) -> None:
        """Mark the channel as closed. The generations on it end with its connection."""
        if not self.closed.done():
            self.closed.set_result(reason)

    def generate(self, request_id: str, payload: bytes) -> None:
        """Have an encoded EngineCoreRequest sent. Raises EngineUnavailable when the connection has ended."""
        if self.connection.closed.done():
            raise EngineUnavailable(self.connection.closed.result())
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send_waiting)
        self._waiting[request_id] = payload
        if len(self._waiting) == MAX_BATCH:
            self._send_waiting()

    def abort(self, request_ids: Sequence[str]) -> None:
        """Give up generations. After the channel's end there is nothing to do: Triton has cancelled them."""
        sent = [request_id for request_id in request_ids if self._waiting.pop(request_id, None) is None]
        for request_id in sent:
            self._ended(request_id)
        if sent and self.is_open:
            self._send_only(ENGINE_ABORT, msgspec.msgpack.encode(sent))

    def _acknowledge(self, serial: str) -> None:
        """Acknowledge an announcement: from now on requests use these adapters. A push of an adapter waits for this."""
        self._send_only(ENGINE_SEEN, serial)

    def _send_only(self, tensor: str, value: str | bytes) -> None:
        """Send a tensor that has no answer."""
        request_id, tensors = f"tell-{uuid.uuid4().hex}", {ENGINE_CHANNEL: self._name, tensor: value}
        self.connection.send(request_id, tensors, lambda *_: None)
        self.connection.forget(request_id)

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return  # a full batch has gone, or all were aborted
        batch = RequestBatch(f"batch-{uuid.uuid4().hex}", set(waiting))
        self._batches |= dict.fromkeys(waiting, batch)

        def on_answer(contents: Contents | None, error: TritonError | None) -> None:
            if error is not None:
                self._refused(dict.fromkeys(batch.running, error))
            elif contents is not None and ENGINE_REFUSED in contents:
                (told,) = read_strings(contents[ENGINE_REFUSED])
                self._refused({request_id: TritonError.parse(text) for request_id, text in json.loads(told).items()})

        names, payloads = [self._name.encode()] * len(waiting), list(waiting.values())
        try:
            self.connection.send(batch.request_id, {ENGINE_CHANNEL: names, ENGINE_REQUEST: payloads}, on_answer)
        except EngineUnavailable as error:
            on_answer(None, error)

    def _refused(self, errors: Mapping[str, TritonError]) -> None:
        for request_id, error in errors.items():
            self._ended(request_id)
            self._callbacks.on_error(request_id, error)

    def _ended(self, request_id: str) -> None:
        """Forget the batch's Triton request with its last generation: it carries refusals only."""
        if (batch := self._batches.pop(request_id, None)) is None:
            return
        batch.running.discard(request_id)
        if not batch.running:
            self.connection.forget(batch.request_id)

    # ---- messages -----------------------------------------------------------------------------------------------

    def _send_opening(self) -> None:
        """Open the channel on a request, or continue it on a further one."""
        self._num_requests += 1
        request = ChannelRequest(f"{self._name}-{self._num_requests}")
        self._requests.append(request)
        self.connection.send(
            request.request_id,
            {ENGINE_CHANNEL: self._name, **self.connection.credentials},
            lambda contents, error: self._answered(request, contents, error),
        )

    def _answered(self, request: ChannelRequest, contents: Contents | None, error: TritonError | None) -> None:
        if request is not self._requests[0]:
            # Triton promises no order between requests: what is on this one comes after all that is on the other.
            if contents is not None:
                request.held.append(contents)
            else:
                self._requests.remove(request)  # refused: the channel stays where it is, for as long again
                self._requests[0].num_messages = self._requests[0].num_bytes = 0
        elif error is not None:
            self._fail(error)
        elif len(self._requests) > 1 and contents is not None and contents.get(ENGINE_OUTPUTS) == NO_STEPS:
            self._change_over()
        elif contents:
            self._take(request, contents)
        else:
            self.close("Triton closed the channel")

    def _fail(self, error: TritonError) -> None:
        if self._is_open.done():
            self.close(reason_of(error))
        else:
            self._is_open.set_exception(error)

    def _take(self, request: ChannelRequest, contents: Contents) -> None:
        if ENGINE_ADAPTERS in contents:
            (told,) = read_strings(contents[ENGINE_ADAPTERS])
            self._acknowledge(self._callbacks.on_adapters(told))
        if not self._is_open.done():
            self._is_open.set_result(None)
        if ENGINE_OUTPUTS in contents:
            self._receive(contents[ENGINE_OUTPUTS])
        request.num_messages += 1
        request.num_bytes += sum(map(len, contents.values()))
        if request.is_used_up and len(self._requests) == 1 and self.is_open:
            self._send_opening()

    def _change_over(self) -> None:
        """The oldest request has ended: go on with the next one."""
        self.connection.forget(self._requests.popleft().request_id)
        request = self._requests[0]
        held, request.held = request.held, []
        for contents in held:
            self._answered(request, contents, None)

    def _receive(self, payload: bytes) -> None:
        for step in self._decode_steps(payload):
            for output in step.outputs:
                if output.finish_reason is not None:
                    self._ended(output.request_id)
            self._callbacks.on_step(step)


def reason_of(error: TritonError) -> str:
    """The reason without the words that EngineUnavailable puts before it."""
    return error.reason if isinstance(error, EngineUnavailable) else str(error)
