"""Everything that a front-end process asks of the model, over one connection to Triton.

A request has one answer (control operations, generations, aborts) or many (the channel); see
model_repository/llm/config.pbtxt for the tensors.
"""

import asyncio
import contextlib
import itertools
import json
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput, InferResult
from tritonclient.utils import InferenceServerException

from openai_frontend.description import MODEL
from openai_frontend.errors import EngineUnavailable, TritonError
from openai_frontend.stream import TritonStream

# gRPC sends a call's messages one by one, and a turn of asyncio's loop goes by before it says that one has gone. When
# many requests come at once a turn takes long: on one call they would leave at one per turn.
NUM_STREAMS = 16
# Messages with prompt logprobs of long prompts are tens of MB.
MAX_MESSAGE_BYTES = 2**31 - 1
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # No HTTP/2 keepalive: Triton ends connections that ping while nothing else travels ("too_many_pings").
]

OnAnswer = Callable[[InferResult | None, TritonError | None], None]


class TritonConnection:
    """Use `connect`; afterwards `send` never blocks, and `closed` tells when the connection has ended."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._client = client
        self._waiting: dict[str, tuple[TritonStream, OnAnswer]] = {}  # by request id
        self._streams = [TritonStream(client, self._answer, self._end) for _ in range(NUM_STREAMS)]
        self._turns = itertools.cycle(self._streams)

    @classmethod
    async def connect(cls, url: str, timeout_s: float) -> "TritonConnection":
        """Connect to the model at `url` (host:port of Triton's gRPC endpoint).

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

    def send(
        self, request_id: str, inputs: list[InferInput], on_answer: OnAnswer, *, behind: str | None = None
    ) -> None:
        """Send one request; `on_answer` is called for each of its responses, until an error or `forget`.

        behind: id of a request not forgotten yet, which Triton must get before this one.

        Raises EngineUnavailable when the connection has ended.
        """
        if self.closed.done():
            raise EngineUnavailable(self.closed.result())
        stream = self._waiting[behind][0] if behind in self._waiting else next(self._turns)
        self._waiting[request_id] = stream, on_answer
        stream.send(request_id, inputs)

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
        """End it; Triton cancels what is still running."""
        await asyncio.gather(*(stream.close() for stream in self._streams))
        with contextlib.suppress(InferenceServerException):
            await self._client.close()

    def _answer(self, result: InferResult, error: str | None) -> None:
        request_id = result.get_response().id
        if request_id not in self._waiting:
            return
        _, on_answer = self._waiting[request_id]
        if error is None:
            on_answer(result, None)
        else:
            del self._waiting[request_id]
            on_answer(None, TritonError.parse(error))

    def _end(self, reason: str) -> None:
        """A stream has ended; with a hole in it the connection is no use any more."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        waiting, self._waiting = self._waiting, {}
        for _, on_answer in waiting.values():
            on_answer(None, EngineUnavailable(reason))


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
