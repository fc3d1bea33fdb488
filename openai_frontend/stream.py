"""One gRPC call to Triton: requests go out on it, one after the other, and their answers come back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput, InferResult

from openai_frontend.description import MODEL


class TritonStream:
    """`send` never blocks."""

    def __init__(
        self,
        client: triton.InferenceServerClient,
        on_response: Callable[[InferResult, str | None], None],
        on_end: Callable[[str], None],
    ) -> None:
        """on_response: gets each response (its id is the request's), and an error's message.

        on_end: called once, with the reason, when the call has ended, whoever ended it.
        """
        self._on_response = on_response
        self._on_end = on_end
        self._outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._call = client.stream_infer(self._requests())
        self._reader = asyncio.create_task(self._read(), name="triton-stream")

    def send(self, request_id: str, inputs: list[InferInput]) -> None:
        self._outgoing.put_nowait({"model_name": MODEL, "inputs": inputs, "request_id": request_id})

    async def close(self) -> None:
        """End the call; Triton cancels what is still running on it."""
        self._reader.cancel()
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self._outgoing.get()

    async def _read(self) -> None:
        reason = "the connection to Triton was closed"
        try:
            # Not tritonclient's own iterator: it drops the id of a response that carries an error.
            async for response in self._call._grpc_call:
                self._on_response(InferResult(response.infer_response), response.error_message or None)
        except Exception as error:  # whatever gRPC raises when a call breaks: the reason goes to every request
            details = error.details() if isinstance(error, grpc.RpcError) else error
            reason = f"the connection to Triton broke: {details}"
        finally:
            self._on_end(reason)
