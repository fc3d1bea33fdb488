"""A front end's channel to one replica: its generations go out on it, and their tokens come back.

The other end is tritonlive/backend/generation/relay.py. Messages are vLLM's own structs in its encoding:
EngineCoreRequests out, lists of EngineCoreOutputs in. Generations that begin in one turn of the loop share one batched
Triton request, so that its cost is paid once when many requests arrive together.
"""

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas.connection import Contents, TritonConnection
from openai_frontend.vllm_seam import EngineCoreOutputs, MsgpackDecoder
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


@dataclass(frozen=True)
class ChannelCallbacks:
    """Functions that a channel calls with what arrives on it."""

    on_outputs: Callable[[EngineCoreOutputs], None]
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


class ReplicaChannel:
    """Made by `open`. `closed` gets the reason when the model closes it, or when its connection ends."""

    def __init__(self, connection: TritonConnection, callbacks: ChannelCallbacks) -> None:
        self.connection = connection
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._name = f"front-end-{uuid.uuid4().hex}"
        self._callbacks = callbacks
        self._decoder = MsgpackDecoder(list[EngineCoreOutputs])
        self._waiting: dict[str, bytes] = {}  # encoded EngineCoreRequests, for the end of this turn of the loop
        self._batches: dict[str, RequestBatch] = {}  # by the id of a generation that has not ended
        connection.closed.add_done_callback(lambda closed: self.close(closed.result()))

    @classmethod
    async def open(
        cls, connection: TritonConnection, callbacks: ChannelCallbacks, timeout_s: float
    ) -> "ReplicaChannel":
        """Open a channel on `connection`.

        Raises TritonError as the model answers, EngineUnavailable when it does not within `timeout_s`.
        """
        channel = cls(connection, callbacks)
        is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_message(contents: Contents | None, error: TritonError | None) -> None:
            if contents is not None and ENGINE_ADAPTERS in contents:
                (told,) = read_strings(contents[ENGINE_ADAPTERS])
                channel._acknowledge(callbacks.on_adapters(told))
                if is_open.done():
                    return
            if not is_open.done():
                is_open.set_exception(error) if error is not None else is_open.set_result(None)
            elif error is not None:
                channel.close(reason_of(error))
            elif contents is not None and ENGINE_OUTPUTS in contents:
                channel._receive(contents[ENGINE_OUTPUTS])
            else:
                channel.close("Triton closed the channel")

        connection.send(channel._name, {ENGINE_CHANNEL: channel._name}, on_message)
        try:
            await asyncio.wait_for(is_open, timeout_s)
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

    def _receive(self, payload: bytes) -> None:
        for outputs in self._decoder.decode(payload):
            for output in outputs.outputs:
                if output.finish_reason is not None:
                    self._ended(output.request_id)
            self._callbacks.on_outputs(outputs)


def reason_of(error: TritonError) -> str:
    """The reason without the words that EngineUnavailable puts before it."""
    return error.reason if isinstance(error, EngineUnavailable) else str(error)
