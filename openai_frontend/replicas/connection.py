"""All requests of a front-end process to the model, over one connection to Triton.

A request has one answer (control operations) or many (the channel), or only a refusal; see
model_repository/llm/config.pbtxt for the tensors.
"""

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.replicas.stream import TritonStream
from tritonlive.triton_messages import build_request
from tritonlive.wire.error_codes import TRITON_STOPPING
from tritonlive.wire.tensor_names import API_KEY, CONTROL_RESULT, MODEL
from tritonlive.wire.triton_tensors import control_tensors, read_contents, read_strings

# Messages with prompt logprobs of long prompts are tens of MB.
MAX_MESSAGE_BYTES = 2**31 - 1
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # No HTTP/2 keepalive: Triton ends connections that ping while nothing else travels ("too_many_pings").
]

Tensors = Mapping[str, str | bytes | list[bytes]]
Contents = Mapping[str, bytes]
"""A response's tensors by name, as raw bytes."""
OnAnswer = Callable[[Contents | None, TritonError | None], None]


class TritonConnection:
    """Made by `connect`. `send` never blocks; `closed` gets the reason when the connection ends."""

    def __init__(self, channel: grpc.aio.Channel, key: str | None = None) -> None:
        self.credentials: Tensors = {API_KEY: key} if key else {}
        """Tensors that show the model this front end's key."""
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._channel = channel
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._waiting: dict[str, OnAnswer] = {}  # by request id
        self._stream = TritonStream(self._stub, self._answer, self._end)
        # A stream of its own, because an adapter's tensors, which travel with an operation, would hold generations up.
        self._control_stream = TritonStream(self._stub, self._answer, self._end)

    @classmethod
    async def connect(cls, url: str, timeout_s: float, key: str | None = None) -> "TritonConnection":
        """Connect to the model at `url` (host:port of Triton's gRPC endpoint); `key` is one that it accepts.

        Raises EngineUnavailable when Triton does not answer, or its model is not ready, within `timeout_s`.
        """
        channel = grpc.aio.insecure_channel(url, CHANNEL_OPTIONS)
        try:
            unavailable_reason = (
                None if await is_model_ready(channel, timeout_s) else f"has no ready model {MODEL!r} yet"
            )
        except grpc.aio.AioRpcError as error:
            unavailable_reason = f"does not answer: {error.details()}"
        if unavailable_reason is not None:
            await channel.close()
            raise EngineUnavailable(f"Triton at {url} {unavailable_reason}")
        return cls(channel, key)

    def send(self, request_id: str, tensors: Tensors, on_answer: OnAnswer) -> None:
        """Send one request; `on_answer` is called for each of its responses, until an error or `forget`.

        Triton gets the requests in the order of the calls. Raises EngineUnavailable when the connection has ended.
        """
        self._send(self._stream, request_id, tensors, on_answer)

    def forget(self, request_id: str) -> None:
        """Ignore all further answers to a request."""
        self._waiting.pop(request_id, None)

    async def control(
        self,
        operation: str,
        arguments: dict[str, Any],
        key: str | None,
        timeout_s: float,
        payload: bytes | None = None,
    ) -> Any:
        """Run a control operation, see config.pbtxt. Returns its JSON result.

        Raises TritonError as the model answers, EngineUnavailable when no answer comes within `timeout_s`.
        """
        answer: asyncio.Future[Contents] = asyncio.get_running_loop().create_future()

        def on_answer(contents: Contents | None, error: TritonError | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            elif contents is not None:
                answer.set_result(contents)

        request_id = f"control-{uuid.uuid4().hex}"
        self._send(self._control_stream, request_id, control_tensors(operation, arguments, key, payload), on_answer)
        try:
            contents = await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise EngineUnavailable(f"no answer to {operation} within {timeout_s:.0f} s") from None
        finally:
            self.forget(request_id)
        return json.loads(read_strings(contents[CONTROL_RESULT])[0])

    async def has_model(self, timeout_s: float) -> bool:
        """Whether Triton serves the model; a busy model counts.

        Raises EngineUnavailable when Triton does not answer within `timeout_s`.
        """
        try:
            return await is_model_ready(self._channel, timeout_s)
        except grpc.aio.AioRpcError as error:
            raise EngineUnavailable(f"Triton does not answer: {error.details()}") from None

    async def close(self) -> None:
        """End the connection; Triton cancels what is still running."""
        await asyncio.gather(self._stream.close(), self._control_stream.close())
        await self._channel.close()

    def _send(self, stream: TritonStream, request_id: str, tensors: Tensors, on_answer: OnAnswer) -> None:
        if self.closed.done():
            raise EngineUnavailable(self.closed.result())
        self._waiting[request_id] = on_answer
        stream.send(build_request(tensors, request_id))

    def _answer(self, response: Any, error: str | None) -> None:
        request_id = response.id
        if request_id not in self._waiting:
            return
        on_answer = self._waiting[request_id]
        if error is None:
            on_answer(read_contents(response), None)
        else:
            del self._waiting[request_id]
            on_answer(None, TritonError.parse(error))

    def _end(self, reason: str) -> None:
        """A stream has ended, so that the connection is incomplete and ends, too."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        waiting, self._waiting = self._waiting, {}
        for on_answer in waiting.values():
            on_answer(None, EngineUnavailable(reason))


async def is_model_ready(channel: grpc.aio.Channel, timeout_s: float) -> bool:
    """Ask Triton. Raises grpc.aio.AioRpcError when it does not answer."""
    request = service_pb2.ModelReadyRequest(name=MODEL)  # ty: ignore[missing-attribute] - generated
    try:
        return (await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelReady(request, timeout=timeout_s)).ready
    except grpc.aio.AioRpcError as error:
        if error.details() == TRITON_STOPPING:
            return False
        raise
