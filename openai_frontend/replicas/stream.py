"""One gRPC call to Triton: requests go out on it, one after the other, and their answers come back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

# A call whose requests were all answered ends by itself within this time.
END_TIMEOUT_S = 1.0


class TritonStream:
    """One bidirectional call; `send` never blocks."""

    def __init__(
        self,
        stub: service_pb2_grpc.GRPCInferenceServiceStub,
        on_response: Callable[[Any, str | None], None],
        on_end: Callable[[str], None],
    ) -> None:
        """on_response: gets each ModelInferResponse (its id is the request's), and an error's message.

        on_end: called once with the reason when the call has ended, on either side.
        """
        self._on_response = on_response
        self._on_end = on_end
        self._outgoing: asyncio.Queue[Any] = asyncio.Queue()
        self._call = stub.ModelStreamInfer(self._requests())
        self._reader = asyncio.create_task(self._read(), name="triton-stream")

    def send(self, request: Any) -> None:
        """A ModelInferRequest."""
        self._outgoing.put_nowait(request)

    async def close(self) -> None:
        """End the call; Triton cancels what is still running on it.

        Triton 2.51 keeps the request of a call that is cancelled while Triton sends on it, and then cannot unload the
        model. This happens after an error, because Triton sends the end of the request after the error.
        """
        self._outgoing.put_nowait(None)
        await asyncio.wait([self._reader], timeout=END_TIMEOUT_S)
        self._reader.cancel()
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _requests(self) -> AsyncIterator[Any]:
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def _read(self) -> None:
        reason = "the connection to Triton was closed"
        try:
            async for response in self._call:
                self._on_response(response.infer_response, response.error_message or None)
        except Exception as error:  # every request hears the reason, whatever it is
            details = error.details() if isinstance(error, grpc.aio.AioRpcError) else repr(error)
            reason = f"the connection to Triton broke: {details}"
        finally:
            self._on_end(reason)
