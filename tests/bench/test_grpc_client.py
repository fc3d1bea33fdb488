"""The client of Triton's endpoint counts the tokens that the server counts, and voids a run with an error."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.client import LoadError
from bench.grpc_client import COUNT, GrpcJob, send_all

messages: Any = service_pb2


class Model(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each request with one response of two tokens and one of one token, or with an error."""

    def __init__(self, error: str = "", output: str = COUNT) -> None:
        self.error = error
        self.output = output
        self.requests: list[Any] = []

    async def ModelStreamInfer(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in request_iterator:
            self.requests.append(request)
            for count in (2, 1):
                response = messages.ModelInferResponse()
                response.outputs.add(name=self.output, datatype="UINT32", shape=[1, 1])
                response.raw_output_contents.append(count.to_bytes(4, "little"))
                yield messages.ModelStreamInferResponse(infer_response=response, error_message=self.error)


async def run(model: Model, *, num_requests: int = 3) -> Any:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(model, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        job = GrpcJob(f"127.0.0.1:{port}", ["a b"] * num_requests, {"max_tokens": 3}, 2, stream=True)
        return await send_all(job)
    finally:
        await server.stop(None)


async def test_every_request_is_sent_and_its_tokens_are_counted() -> None:
    model = Model()
    outcome = await run(model)
    assert outcome.completion_tokens == 9
    assert outcome.ttft_mean > 0
    assert outcome.gap_p50 >= 0
    assert len(model.requests) == 3
    names = [tensor.name for tensor in model.requests[0].inputs]
    assert names == ["text_input", "stream", "sampling_parameters", f"return_{COUNT}"]


async def test_an_error_voids_the_run() -> None:
    with pytest.raises(LoadError, match="no such prompt"):
        await run(Model("no such prompt"))


async def test_a_response_without_a_count_voids_the_run() -> None:
    with pytest.raises(LoadError, match=COUNT):
        await run(Model(output="text_output"))
