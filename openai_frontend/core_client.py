"""vLLM's process boundary to its engine core, laid through Triton.

vLLM's AsyncLLM renders, detokenizes and streams in one process and talks to the engine core in another, in
EngineCoreRequest and EngineCoreOutputs structs. This client speaks the same structs to the model
in Triton (model_repository/llm/1/relay.py is the other end), so everything above it is vLLM's, unchanged.
"""

import asyncio
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import msgspec
from tritonclient.grpc import InferResult
from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from openai_frontend.adapters import PushedAdapters
from openai_frontend.connection import TritonConnection, bytes_input, string_input
from openai_frontend.errors import EngineUnavailable, TritonError

# vLLM's encoder moves arrays above a threshold into frames of their own; a tensor is one frame.
ONE_FRAME = 1 << 62

OnFailure = Callable[[str, TritonError], None]


class TritonCoreClient(EngineCoreClient):
    """The engine core as AsyncLLM sees it; `attach` gives it a connection, and a new one after that broke."""

    def __init__(self, on_failure: OnFailure) -> None:
        """`on_failure(request_id, error)` is called for a generation that Triton refused or gave up."""
        self.engine_ranks_managed = [0]
        self.weight_version: str | None = None
        self.adapters = PushedAdapters()
        self.resources = SimpleNamespace(engine_dead=False)  # AsyncLLM looks here
        self._on_failure = on_failure
        self._connection: TritonConnection | None = None
        self._channel = ""
        self._outputs: asyncio.Queue[EngineCoreOutputs | TritonError] = asyncio.Queue()
        self._encoder = MsgpackEncoder(size_threshold=ONE_FRAME)
        self._decoder = MsgpackDecoder(list[EngineCoreOutputs])

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and not self._connection.closed.done()

    @property
    def connection(self) -> TritonConnection:
        """Raises EngineUnavailable while there is none."""
        if self._connection is None or self._connection.closed.done():
            raise EngineUnavailable("the connection to Triton is lost and being made again")
        return self._connection

    async def attach(self, connection: TritonConnection, timeout_s: float) -> None:
        """Open this process's channel on `connection`; the engine can be used afterwards.

        Raises TritonError as the model answers.
        """
        is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_message(result: InferResult | None, error: TritonError | None) -> None:
            if result is not None and (told := result.as_numpy("engine_adapters")) is not None:
                self._tell_seen(connection, self.adapters.take(told.item()))
                if is_open.done():
                    return
            if not is_open.done():
                is_open.set_exception(error) if error is not None else is_open.set_result(None)
            elif error is not None:
                self._outputs.put_nowait(error)
            elif result is not None and (payload := result.as_numpy("engine_outputs")) is not None:
                self._receive(payload.tobytes())
            else:
                self._outputs.put_nowait(EngineUnavailable("Triton closed the channel"))

        self._outputs = asyncio.Queue()
        self._channel = f"front-end-{uuid.uuid4().hex}"
        connection.send(self._channel, [string_input("engine_channel", self._channel)], on_message)
        await asyncio.wait_for(is_open, timeout_s)
        self._connection = connection

    async def get_output_async(self) -> EngineCoreOutputs:
        outputs = await self._outputs.get()
        if isinstance(outputs, TritonError):
            raise outputs
        return outputs

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        payload = cast(bytes, self._encoder.encode(request)[0])
        inputs = [string_input("engine_channel", self._channel), bytes_input("engine_request", payload)]

        def on_answer(_: InferResult | None, error: TritonError | None) -> None:
            if error is not None:
                self._on_failure(request.request_id, error)

        self.connection.send(request.request_id, inputs, on_answer)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.abort_now(request_ids)

    def abort_now(self, request_ids: list[str]) -> None:
        """Give up generations. Without a connection there is nothing to do: Triton has cancelled them."""
        if not request_ids or not self.is_connected:
            return
        for request_id in request_ids:
            self.connection.forget(request_id)
        payload = msgspec.msgpack.encode(request_ids)
        inputs = [string_input("engine_channel", self._channel), bytes_input("engine_abort", payload)]
        abort_id = f"abort-{uuid.uuid4().hex}"
        self.connection.send(abort_id, inputs, lambda result, error: None)
        self.connection.forget(abort_id)

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return ("generate",)

    def dp_engines_running(self) -> bool:
        return False

    def shutdown(self, timeout: float | None = None) -> None:
        """The engine belongs to Triton; a front end that ends only lets go of it (see TritonEngineClient.close)."""

    def _tell_seen(self, connection: TritonConnection, serial: str) -> None:
        """A push of an adapter waits for this: from now on requests use it."""
        seen_id = f"seen-{uuid.uuid4().hex}"
        inputs = [string_input("engine_channel", self._channel), string_input("engine_seen", serial)]
        connection.send(seen_id, inputs, lambda result, error: None)
        connection.forget(seen_id)

    def _receive(self, payload: bytes) -> None:
        # A generation ends with its last token here; its own Triton request has nothing to say but errors.
        for outputs in self._decoder.decode(payload):
            if outputs.weight_version is not None:
                self.weight_version = outputs.weight_version
            for output in outputs.outputs:
                if output.finish_reason is not None:
                    self.connection.forget(output.request_id)
            self._outputs.put_nowait(outputs)
