"""The running native requests: each has a task, and ends with its client."""

import asyncio
import uuid

from tritonlive.backend.adapters.adapters import Adapters
from tritonlive.backend.engine import Engine
from tritonlive.backend.grammars.grammars import Grammars
from tritonlive.backend.responses import ResponseWriter, Sender
from tritonlive.backend.weights.history import InFlight

from .generate import generate
from .native_request import NativeRequest
from .token_level import TokenLevel


class NativeRuns:
    """Runs native requests on the engine's loop, each in a separate task."""

    def __init__(
        self, engine: Engine, writer: ResponseWriter, adapters: Adapters, in_flight: InFlight, grammars: Grammars
    ) -> None:
        self._engine = engine
        self._grammars = grammars
        self._writer = writer
        self._adapters = adapters
        self._in_flight = in_flight
        self._token_level = TokenLevel(engine)
        self._running: dict[asyncio.Task[None], Sender] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def run(self, request: NativeRequest, sender: Sender, task: "asyncio.Task[None]") -> None:
        """Run a request in `task`, the current task, and send its responses. Raises RequestError."""
        adapter = self._adapters.find(request.lora_name) if request.lora_name is not None else None
        self._running[task] = sender
        self._in_flight.begin(task)
        self._adapters.begin(task, adapter)
        request_id = f"triton-{uuid.uuid4().hex[:16]}"
        try:
            await self._grammars.admit(request.params)
            if not request.return_text:
                tensors = await self._token_level.generate(request, request_id, adapter)
                self._writer.send(sender, tensors, final=True)
                return
            async for tensors, is_last in generate(self._engine.llm, request, request_id, adapter):
                self._writer.send(sender, tensors, final=is_last)
                await self._writer.caught_up()
        finally:
            del self._running[task]
            self._in_flight.end(task)
            self._adapters.end(task)

    async def cancel_abandoned(self) -> None:
        """Cancel the tasks of requests whose clients have cancelled them."""
        for task, sender in list(self._running.items()):
            if await self._writer.is_cancelled(sender):
                task.cancel()
