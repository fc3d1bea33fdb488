"""One gRPC stream to Triton that carries everything a front-end process asks of the model.

Requests are told apart by their id. A request has one answer (control operations, generations, aborts) or many (the
channel); see model_repository/llm/config.pbtxt for the tensors.
"""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput, InferResult
from tritonclient.utils import InferenceServerException

from openai_frontend.description import MODEL
from openai_frontend.errors import EngineUnavailable, TritonError

# Messages with prompt logprobs of long prompts are tens of MB.
MAX_MESSAGE_BYTES = 2**31 - 1
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # No HTTP/2 keepalive: Triton ends connections that ping while nothing else travels ("too_many_pings").
]

OnAnswer = Callable[[InferResult | None, TritonError | None], None]


class TritonConnection:
    """Use `connect`; afterwards `send` never blocks, and `closed` tells when the stream has ended."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._client = client
        self._outgoing: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._waiting: dict[str, OnAnswer] = {}
        self._stream = client.stream_infer(self._requests())
        self._reader = asyncio.create_task(self._read(), name="triton-stream")

    @classmethod
    async def connect(cls, url: str, timeout_s: float) -> "TritonConnection":
        """Open a stream to the model at `url` (host:port of Triton's gRPC endpoint).

        Raises EngineUnavailable when Triton does not answer, or its model is not ready, within `timeout_s`.
        """
        client = triton.InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)
        try:
            ready = await client.is_model_ready(MODEL, client_timeout=timeout_s)
        except InferenceServerException as error:
            await client.close()
            raise EngineUnavailable(f"Triton at {url} does not answer: {error.message()}") from None
        if not ready:
            await client.close()
            raise EngineUnavailable(f"Triton at {url} has no ready model {MODEL!r} yet")
        return cls(client)

    def send(self, request_id: str, inputs: list[InferInput], on_answer: OnAnswer) -> None:
        """Send one request; `on_answer` is called for each of its responses, until an error or `forget`.

        Raises EngineUnavailable when the stream has ended.
        """
        if self.closed.done():
            raise EngineUnavailable(self.closed.result())
        self._waiting[request_id] = on_answer
        self._outgoing.put_nowait({"model_name": MODEL, "inputs": inputs, "request_id": request_id})

    def forget(self, request_id: str) -> None:
        """Nothing more is expected for a request."""
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
        inputs = [
            string_input("control_operation", operation),
            string_input("control_arguments", json.dumps(arguments)),
        ]
        if key is not None:
            inputs.append(string_input("control_key", key))
        if payload is not None:
            inputs.append(bytes_input("control_payload", payload))
        answer: asyncio.Future[InferResult] = asyncio.get_running_loop().create_future()

        def on_answer(result: InferResult | None, error: TritonError | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            elif result is not None:
                answer.set_result(result)

        request_id = f"control-{uuid.uuid4().hex}"
        self.send(request_id, inputs, on_answer)
        try:
            result = await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise EngineUnavailable(f"no answer to {operation} within {timeout_s:.0f} s") from None
        finally:
            self.forget(request_id)
        return json.loads(result.as_numpy("control_result").item())

    async def is_answering(self, timeout_s: float) -> bool:
        """Whether Triton is there, whatever its model is busy with."""
        try:
            return await self._client.is_server_live(client_timeout=timeout_s)
        except InferenceServerException:
            return False

    async def close(self) -> None:
        """End the stream; Triton cancels what is still running on it."""
        self._reader.cancel()
        self._stream.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        with contextlib.suppress(InferenceServerException):
            await self._client.close()

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def _read(self) -> None:
        reason = "the connection to Triton was closed"
        try:
            async for result, error in responses(self._stream):
                self._answer(result, error)
        except Exception as error:  # whatever gRPC raises when a stream breaks: the reason goes to every request
            reason = f"the connection to Triton broke: {getattr(error, 'details', lambda: error)()}"
        finally:
            self.closed.set_result(reason)
            waiting, self._waiting = self._waiting, {}
            for on_answer in waiting.values():
                on_answer(None, EngineUnavailable(reason))

    def _answer(self, result: InferResult, error: str | None) -> None:
        request_id = result.get_response().id
        on_answer = self._waiting.get(request_id)
        if on_answer is None:
            return
        if error is None:
            on_answer(result, None)
        else:
            del self._waiting[request_id]
            on_answer(None, TritonError.parse(error))


async def responses(stream: Any) -> AsyncIterator[tuple[InferResult, str | None]]:
    """A stream's responses with their ids, which tritonclient drops from those that carry an error."""
    async for response in stream._grpc_call:
        yield InferResult(response.infer_response), response.error_message or None


def string_input(name: str, value: str) -> InferInput:
    """A TYPE_STRING tensor of shape [1, 1]."""
    tensor = InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value.encode()]], dtype=np.object_))
    return tensor


def bytes_input(name: str, value: bytes) -> InferInput:
    """A TYPE_UINT8 tensor of shape [1, len(value)]."""
    tensor = InferInput(name, [1, len(value)], "UINT8")
    tensor.set_data_from_numpy(np.frombuffer(value, dtype=np.uint8)[np.newaxis, :])
    return tensor
