"""An engine for the service: that of engine.py, which also generates what a test puts into it."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.exceptions import EngineDeadError

from tests.backend.engine import Core, FakeEngine, Llm
from tritonlive.backend.settings import Settings
from tritonlive.backend.tensors import Unavailable

CONTROL_KEY = "control-key"


class ServingCore(Core):
    """With requests and outputs."""

    def __init__(self, llm: "ServingLlm") -> None:
        super().__init__(llm)
        self._serving = llm
        self.added: list[EngineCoreRequest] = []
        self.aborted: list[str] = []
        self.outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self.outputs.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        if self._serving.errored:
            raise EngineDeadError
        self.added.append(request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids


class InputProcessor:
    """Accepts every request."""

    structured_outputs_config: Any = "checked here"

    def _validate_params(self, params: Any, supported_tasks: Any) -> None: ...
    def _validate_lora(self, lora_request: Any) -> None: ...
    def _validate_prompt_len(self, prompt_len: int, prompt_type: str) -> None: ...


class Renderer:
    """Accepts all token ids."""

    def validate_token_ids(self, token_ids: list[int]) -> None: ...


class ServingLlm(Llm):
    """A fake with generation. `generate` yields one output per text in `texts`, and then waits if `is_endless`."""

    def __init__(self, backend: str | None, folder: Path, num_ranks: int = 1) -> None:
        super().__init__(backend, folder, num_ranks)
        self.engine_core: Any = ServingCore(self)
        self.input_processor = InputProcessor()
        self.renderer = Renderer()
        self.errored = False
        self.texts = ["Hello"]
        self.is_endless = False
        self.bug: Exception | None = None
        self.num_generating = 0
        self.model_config.enable_prompt_embeds = False
        self.model_config.max_model_len = 100
        self.vllm_config.observability_config = SimpleNamespace(custom_histogram_buckets=None)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None
    ) -> AsyncGenerator[RequestOutput, None]:
        self.num_generating += 1
        try:
            if self.bug is not None:
                raise self.bug
            for number, text in enumerate(self.texts):
                is_last = number == len(self.texts) - 1 and not self.is_endless
                sequence = CompletionOutput(0, text, [1], None, None, finish_reason="stop" if is_last else None)
                yield RequestOutput(request_id, None, [1], None, [sequence], finished=is_last)
            if self.is_endless:
                await asyncio.Event().wait()
        finally:
            self.num_generating -= 1

    async def handle_outputs(self) -> None:
        """AsyncLLM's output handler. No output may reach it: `generate` provides those of AsyncLLM's own requests."""
        while True:
            rest = await self.engine_core.get_output_async()
            assert not rest.outputs, "an output of an unknown request"


class ServingEngine(FakeEngine):
    """The model's Engine; what it lacks fails. `boot` before Service.start."""

    def __init__(self, folder: Path) -> None:
        super().__init__("gloo", folder)
        self._make = lambda: ServingLlm("gloo", folder)
        self._llm: Any = self._make()
        self.loop = asyncio.get_running_loop()
        self.settings = Settings([], CONTROL_KEY)
        self.supported_tasks = ("generate",)
        self.is_stopped = False
        self.stop_error: Exception | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    @property
    def llm(self) -> Any:
        if not self.is_running:
            raise Unavailable("engine: died and is being started again; try again in a minute")
        return self._llm

    @llm.setter
    def llm(self, llm: Any) -> None:
        self._llm = llm

    async def boot(self) -> None:
        """Acts like the engine's thread: a new AsyncLLM with all hooks, and its output handler."""
        self.is_running = True
        await super().start()
        self._tasks.append(asyncio.create_task(self._llm.handle_outputs()))

    def start(self) -> None:  # ty: ignore[incompatible-method-override] (as Engine's)
        assert self._tasks, "boot first"

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._tasks.append(asyncio.create_task(coroutine))

    def kill(self) -> None:
        self._llm.errored = True
        super().kill()

    def stop(self) -> None:
        self.is_stopped = True
        if self.stop_error is not None:
            raise self.stop_error

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def put(self, *outputs: EngineCoreOutput, version: str = "default") -> None:
        """One step."""
        self._llm.engine_core.outputs.put_nowait(EngineCoreOutputs(outputs=list(outputs), weight_version=version))
