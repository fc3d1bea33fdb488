"""A gRPC server in Triton's place. Its engine paces its steps like a real engine and computes nothing.

It implements those operations of tritonlive's model that a front end uses. The front end is the real one, sockets
included, and takes most of the processor time.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Self, cast

import grpc
import msgspec
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from openai_frontend.engine_info import EngineInfo
from tritonlive.wire.limits import MAX_BATCH
from tritonlive.wire.tensor_names import (
    CONTROL_ARGUMENTS,
    CONTROL_OPERATION,
    CONTROL_RESULT,
    ENGINE_ABORT,
    ENGINE_CHANNEL,
    ENGINE_OUTPUTS,
    ENGINE_REQUEST,
    ENGINE_SEEN,
    FRONT_END_INPUTS,
    FRONT_END_OUTPUTS,
)

# protobuf makes their members at import, so type checkers cannot see them.
service: Any = service_pb2
model_config: Any = model_config_pb2

TOKEN = 2000  # a word of the tiny model's vocabulary
WEIGHT_VERSION = "default"
ONE_FRAME = 1 << 62
NO_STEPS = {ENGINE_OUTPUTS: msgspec.msgpack.encode([])}

Operation = Callable[[dict[str, Any]], Any]


class RefusedError(Exception):
    """Raised by an operation that is refused; its text becomes Triton's error message."""


@dataclass
class Running:
    """A running generation: its channel's name, the tokens `left`, and the tokens `kept` until they are sent."""

    channel: bytes
    left: int
    is_streamed: bool
    kept: list[int] = field(default_factory=list)


class FreeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Triton's gRPC service. Use it as a context manager in a running loop; `url` is host:port of its endpoint."""

    NO_ANSWER = object()
    """Result of an operation that sends no answer."""

    def __init__(self, info: EngineInfo, *, step_s: float = 0.0) -> None:
        """A step gives every running generation one token. Steps are `step_s` seconds apart."""
        self.info = info
        self.step_s = step_s
        self.is_ready = True
        self.operations: dict[str, Operation] = {
            "describe": lambda _: asdict(self.info) | {"weight_version": WEIGHT_VERSION},
            "health": lambda _: {"healthy": True},
            "flush_generations": lambda _: {},
        }
        self.requests: list[dict[str, list[bytes] | bytes]] = []  # all requests received, tensors by name
        self.num_streams = 0  # open streams
        self.running: dict[str, Running] = {}
        self._channels: dict[bytes, Callable[[dict[str, bytes]], None]] = {}
        self._has_work = asyncio.Event()
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._encoder = MsgpackEncoder(size_threshold=ONE_FRAME)
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> Self:
        await self._server.start()
        self._engine = asyncio.create_task(self._run_engine())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._engine.cancel()
        await asyncio.gather(self._engine, return_exceptions=True)
        await self._server.stop(None)

    async def stop(self) -> None:
        """End all calls abruptly, like a killed server."""
        await self._server.stop(None)

    # ---- Triton's service ---------------------------------------------------------------------------------------

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service.ModelReadyResponse(ready=self.is_ready)

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = model_config.ModelConfig(name=request.name, max_batch_size=MAX_BATCH)
        for name in sorted(FRONT_END_INPUTS):
            config.input.add(name=name)
        for name in sorted(FRONT_END_OUTPUTS):
            config.output.add(name=name)
        return service.ModelConfigResponse(config=config)

    async def ModelStreamInfer(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        responses: asyncio.Queue[Any] = asyncio.Queue()
        reading = asyncio.create_task(self._read(request_iterator, responses))
        self.num_streams += 1
        try:
            while (response := await responses.get()) is not None:
                yield response
        finally:
            self.num_streams -= 1
            reading.cancel()

    async def _read(self, requests: AsyncIterator[Any], responses: asyncio.Queue[Any]) -> None:
        async for request in requests:
            tensors = read_request(request)
            self.requests.append(tensors)

            def send(contents: dict[str, bytes], request_id: str = request.id) -> None:
                responses.put_nowait(response_of(request_id, contents))

            try:
                self._answer(tensors, send)
            except RefusedError as error:
                refusal = service.ModelInferResponse(id=request.id)
                responses.put_nowait(service.ModelStreamInferResponse(infer_response=refusal, error_message=str(error)))
        responses.put_nowait(None)

    # ---- our model ----------------------------------------------------------------------------------------------

    def _answer(self, tensors: dict[str, Any], send: Callable[[dict[str, bytes]], None]) -> None:
        if CONTROL_OPERATION in tensors:
            (operation,) = tensors[CONTROL_OPERATION]
            arguments = json.loads(tensors[CONTROL_ARGUMENTS][0]) if CONTROL_ARGUMENTS in tensors else {}
            result = self.operations[operation.decode()](arguments)
            if result is not self.NO_ANSWER:
                send({CONTROL_RESULT: as_string(json.dumps(result))})
        elif ENGINE_REQUEST in tensors:
            for channel, payload in zip(tensors[ENGINE_CHANNEL], tensors[ENGINE_REQUEST], strict=True):
                request = self._decoder.decode(payload)
                params = request.sampling_params
                is_streamed = params.output_kind is not RequestOutputKind.FINAL_ONLY
                self.running[request.request_id] = Running(channel, params.max_tokens, is_streamed)
            self._has_work.set()
        elif ENGINE_ABORT in tensors:
            for request_id in msgspec.msgpack.decode(tensors[ENGINE_ABORT]):
                self.running.pop(request_id, None)
        elif ENGINE_SEEN not in tensors:
            name = tensors[ENGINE_CHANNEL][0]
            if (left := self._channels.get(name)) is not None:  # the channel continues on a new request
                left(NO_STEPS)
            self._channels[name] = send
            send(NO_STEPS)

    async def _run_engine(self) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            if not self.running:
                self._has_work.clear()
                await self._has_work.wait()
            self._step()

    def _step(self) -> None:
        outputs: dict[Callable[[dict[str, bytes]], None], list[EngineCoreOutput]] = {}
        for request_id, running in list(self.running.items()):
            running.left -= 1
            running.kept.append(TOKEN)
            reason = None if running.left else FinishReason.LENGTH
            if reason is not None:
                del self.running[request_id]
            if reason is not None or running.is_streamed:
                tokens, running.kept = running.kept, []
                output = EngineCoreOutput(request_id, tokens, finish_reason=reason)
                outputs.setdefault(self._channels[running.channel], []).append(output)
        for send, ready in outputs.items():
            stats = SchedulerStats(num_running_reqs=len(self.running))
            step = EngineCoreOutputs(outputs=ready, scheduler_stats=stats, weight_version=WEIGHT_VERSION)
            send({ENGINE_OUTPUTS: cast(bytes, self._encoder.encode([step])[0])})


def read_request(request: Any) -> dict[str, list[bytes] | bytes]:
    """Tensors of a ModelInferRequest by name: a list for BYTES, the raw bytes for UINT8."""
    return {
        tensor.name: raw if tensor.datatype == "UINT8" else split(raw)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def split(raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor."""
    parts, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        parts.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return parts


def as_string(text: str) -> bytes:
    """Encode a BYTES tensor with one element."""
    return len(text.encode()).to_bytes(4, "little") + text.encode()


def response_of(request_id: str, contents: dict[str, bytes]) -> Any:
    """Build a ModelStreamInferResponse."""
    response = service.ModelInferResponse(id=request_id)
    for name, raw in contents.items():
        is_text = name == CONTROL_RESULT
        response.outputs.add(
            name=name, datatype="BYTES" if is_text else "UINT8", shape=[1, 1] if is_text else [1, len(raw)]
        )
        response.raw_output_contents.append(raw)
    return service.ModelStreamInferResponse(infer_response=response)
