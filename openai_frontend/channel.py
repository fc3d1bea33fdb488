"""A front end's channel to one replica: its generations go out on it, and their tokens come back.

The other end is model_repository/llm/1/relay.py. What travels are vLLM's own structs in vLLM's own encoding: out, one
EngineCoreRequest; in, a list of EngineCoreOutputs.
"""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.serial_utils import MsgpackDecoder

from openai_frontend.connection import Contents, TritonConnection
from openai_frontend.errors import EngineUnavailable, TritonError
from sync.triton_tensors import read_strings


@dataclass(frozen=True)
class Callbacks:
    """Who is told what comes on a channel."""

    on_outputs: Callable[[EngineCoreOutputs], None]
    """For every step of the engine that concerns the channel."""
    on_error: Callable[[str, TritonError], None]
    """With the id of a generation that the model refused or gave up, and the reason."""
    on_adapters: Callable[[str], str]
    """With the model's announcement of its LoRA adapters; returns the announcement's serial."""


class Channel:
    """Use `open`; `closed` tells why it is no use any more: the model closed it, or its connection has ended."""

    def __init__(self, connection: TritonConnection, callbacks: Callbacks) -> None:
        self.connection = connection
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._name = f"front-end-{uuid.uuid4().hex}"
        self._callbacks = callbacks
        self._decoder = MsgpackDecoder(list[EngineCoreOutputs])
        connection.closed.add_done_callback(lambda closed: self.close(closed.result()))

    @classmethod
    async def open(cls, connection: TritonConnection, callbacks: Callbacks, timeout_s: float) -> "Channel":
        """Open a channel on `connection`.

        Raises TritonError as the model answers, EngineUnavailable when it does not within `timeout_s`.
        """
        channel = cls(connection, callbacks)
        is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_message(contents: Contents | None, error: TritonError | None) -> None:
            if contents is not None and "engine_adapters" in contents:
                (told,) = read_strings(contents["engine_adapters"])
                channel._tell_seen(callbacks.on_adapters(told))
                if is_open.done():
                    return
            if not is_open.done():
                is_open.set_exception(error) if error is not None else is_open.set_result(None)
            elif error is not None:
                channel.close(reason_of(error))
            elif contents is not None and "engine_outputs" in contents:
                channel._receive(contents["engine_outputs"])
            else:
                channel.close("Triton closed the channel")

        connection.send(channel._name, {"engine_channel": channel._name}, on_message)
        try:
            await asyncio.wait_for(is_open, timeout_s)
        except TimeoutError:
            raise EngineUnavailable("the model did not open a channel") from None
        return channel

    @property
    def is_open(self) -> bool:
        return not self.closed.done() and not self.connection.closed.done()

    def close(self, reason: str) -> None:
        """Say that the channel is no use any more. What runs on it ends with its connection."""
        if not self.closed.done():
            self.closed.set_result(reason)

    def generate(self, request_id: str, payload: bytes) -> None:
        """Send an encoded EngineCoreRequest. Raises EngineUnavailable when the connection has ended."""
        tensors = {"engine_channel": self._name, "engine_request": payload}

        def on_answer(_: Contents | None, error: TritonError | None) -> None:
            if error is not None:
                self._callbacks.on_error(request_id, error)

        self.connection.send(request_id, tensors, on_answer)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Give up generations. After the channel's end there is nothing to do: Triton has cancelled them."""
        if not request_ids or not self.is_open:
            return
        for request_id in request_ids:
            # Behind the generation itself: an abort that came first would find nothing.
            self._tell("engine_abort", msgspec.msgpack.encode([request_id]), behind=request_id)
            self.connection.forget(request_id)

    def _tell_seen(self, serial: str) -> None:
        """A push of an adapter waits for this: from now on requests use it."""
        self._tell("engine_seen", serial)

    def _tell(self, tensor: str, value: str | bytes, behind: str | None = None) -> None:
        """Send what has no answer."""
        request_id, tensors = f"tell-{uuid.uuid4().hex}", {"engine_channel": self._name, tensor: value}
        self.connection.send(request_id, tensors, lambda *_: None, behind=behind)
        self.connection.forget(request_id)

    def _receive(self, payload: bytes) -> None:
        # A generation ends with its last token here; its own Triton request has nothing to say but errors.
        for outputs in self._decoder.decode(payload):
            for output in outputs.outputs:
                if output.finish_reason is not None:
                    self.connection.forget(output.request_id)
            self._callbacks.on_outputs(outputs)


def reason_of(error: TritonError) -> str:
    """What is the matter, without the words that EngineUnavailable puts before it."""
    return error.reason if isinstance(error, EngineUnavailable) else str(error)
