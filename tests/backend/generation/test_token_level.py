"""Token-level requests, over an engine whose outputs the test provides."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor

from tritonlive.backend.generation import token_level
from tritonlive.backend.generation.failure import GenerationFailed
from tritonlive.backend.generation.native_request import NativeRequest
from tritonlive.backend.tensors import Unavailable


class FakeEngine:
    """Engine, AsyncLLM, its input processor and its engine core in one; `put` provides an output."""

    def __init__(self) -> None:
        self.llm = self.engine_core = self.input_processor = self
        self.vllm_config = SimpleNamespace(cache_config=SimpleNamespace(kv_sharing_fast_prefill=False))
        self.is_running = True
        self.added: list[EngineCoreRequest] = []
        self.aborted: list[str] = []
        self.outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self.die: Callable[[str], None] = print
        self.assign_request_id = InputProcessor.assign_request_id

    def on_start(self, hook: Callable[[Any], None]) -> None:
        hook(self)

    def on_death(self, hook: Callable[[str], None]) -> None:
        self.die = hook

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self.outputs.get()

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def get_weight_version(self) -> str:
        return "v1"

    def check_admission(self, n: int, request_id: str) -> None:
        pass

    def process_inputs(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams,
        supported_tasks: Any,
        *,
        lora_request: Any = None,
    ) -> EngineCoreRequest:
        return EngineCoreRequest(request_id, prompt, None, params, None, 0.0, None, None, None)

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        if not self.is_running:
            raise EngineDeadError
        self.added.append(request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    def put(self, request_id: str, *tokens: int, reason: FinishReason | None = None) -> None:
        output = EngineCoreOutput(request_id, list(tokens), finish_reason=reason)
        self.outputs.put_nowait(EngineCoreOutputs(outputs=[output], weight_version="v1"))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def start(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """start(n=2) → the task of a request that the engine has started."""
    level = token_level.TokenLevel(cast(Any, engine))
    monkeypatch.setattr(token_level, "render", lambda llm, prompt: asyncio.sleep(0, prompt))

    async def begin(n: int = 1) -> "asyncio.Task[Any]":
        request = NativeRequest(
            [1, 2], SamplingParams(n=n), stream=False, prepend_prompt=False, returns=frozenset(["token_ids"]),
            return_text=False,
        )  # fmt: skip
        task = asyncio.create_task(level.generate(request, "r"))
        for _ in range(10):
            await asyncio.sleep(0)
        return task

    return begin


async def deliver(engine: FakeEngine) -> EngineCoreOutputs:
    """The next outputs that the relay leaves to AsyncLLM."""
    return await asyncio.wait_for(engine.get_output_async(), 5)


async def test_n_sequences_in_any_order_are_one_answer(engine: FakeEngine, start: Callable[..., Any]) -> None:
    task = await start(n=2)
    first, second = (request.request_id for request in engine.added)
    assert all(request.sampling_params and request.sampling_params.n == 1 for request in engine.added)
    engine.put(second, 7)
    engine.put(first, 5, 6, reason=FinishReason.STOP)
    engine.put("another's", 1)
    engine.put(second, 8, reason=FinishReason.LENGTH)
    engine.put("another's", 2)
    assert [(await deliver(engine)).outputs[0].new_token_ids for _ in range(2)] == [[1], [2]]
    tensors = await asyncio.wait_for(task, 5)
    assert tensors["token_ids"][0].tolist() == [5, 6, 7, 8]
    assert tensors["num_output_tokens"][0].tolist() == [2, 2]
    assert engine.aborted == []


async def test_a_cancelled_request_frees_what_still_runs(engine: FakeEngine, start: Callable[..., Any]) -> None:
    task = await start(n=3)
    ids = [request.request_id for request in engine.added]
    engine.put(ids[1], 5, reason=FinishReason.STOP)
    engine.put("another's", 1)
    await deliver(engine)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.aborted == [ids[0], ids[2]]
    engine.put(ids[0], 6)
    assert (await deliver(engine)).outputs[0].request_id == ids[0], "AsyncLLM ignores outputs of unknown requests"


async def test_a_dead_engine_ends_requests(engine: FakeEngine, start: Callable[..., Any]) -> None:
    task = await start(n=2)
    engine.is_running = False
    engine.die("it died")
    with pytest.raises(Unavailable, match="engine: it died"):
        await asyncio.wait_for(task, 5)
    with pytest.raises(Unavailable, match="try again"):
        await (await start())
    assert engine.aborted == []


async def test_a_sequence_that_fails_fails_the_request(engine: FakeEngine, start: Callable[..., Any]) -> None:
    task = await start(n=2)
    first, second = (request.request_id for request in engine.added)
    engine.put(first, 5, reason=FinishReason.STOP)
    engine.put(second, 6, reason=FinishReason.ERROR)
    engine.put("another's", 1)
    await deliver(engine)
    with pytest.raises(GenerationFailed, match="the generation ended in an error"):
        await asyncio.wait_for(task, 5)
    assert engine.aborted == []
