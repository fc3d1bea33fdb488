"""How a call to Triton ends, against a real gRPC server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from openai_frontend.replicas.stream import TritonStream

messages: Any = service_pb2  # made by protobuf at import: no type checker sees them


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each request with an error, and has something left to send."""

    def __init__(self, seconds_left: float) -> None:
        self.seconds_left = seconds_left
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ModelStreamInfer(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        try:
            async for _ in request_iterator:
                yield messages.ModelStreamInferResponse(error_message="died")
            await asyncio.sleep(self.seconds_left)
        except asyncio.CancelledError:
            self.end.set_result("cancelled")
            raise
        self.end.set_result("by itself")


@pytest.mark.parametrize(("seconds_left", "end"), [(0.2, "by itself"), (60, "cancelled")])
async def test_a_call_is_cancelled_only_if_it_does_not_end(seconds_left: float, end: str) -> None:
    service, server, errors = Server(seconds_left), grpc.aio.server(), list[str | None]()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    is_answered, reasons = asyncio.Event(), list[str]()

    def on_response(response: Any, error: str | None) -> None:
        errors.append(error)
        is_answered.set()

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = TritonStream(service_pb2_grpc.GRPCInferenceServiceStub(channel), on_response, reasons.append)
        stream.send(messages.ModelInferRequest())
        await asyncio.wait_for(is_answered.wait(), 30)
        await asyncio.wait_for(stream.close(), 30)
        assert await asyncio.wait_for(service.end, 30) == end
    await server.stop(None)
    assert errors == ["died"]
    assert reasons == ["the connection to Triton was closed"]
