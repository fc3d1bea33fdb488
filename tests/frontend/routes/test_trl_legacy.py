"""The legacy TRL routes over an engine of our own making."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from vllm.exceptions import GenerationError
from vllm.sampling_params import SamplingParams

from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.errors import EngineUnavailable
from openai_frontend.routes import trl_legacy


class FakeEngine:
    """Generations that end, fail or wait forever, depending on the prompt. Records their outcomes."""

    errored = False

    def __init__(self) -> None:
        self.started: set[str] = set()
        self.aborted: set[str] = set()

    def check_admission(self, n: int) -> None:
        self.admitted = n

    def check_fan_out(self, num_prompts: int, n: int, *, prompts_field: str) -> None:
        self.fan_out = (num_prompts, n, prompts_field)

    async def generate(
        self, prompt: str, sampling_params: SamplingParams, request_id: str
    ) -> AsyncGenerator[Any, None]:
        self.started.add(prompt)
        try:
            if prompt == "fails":
                await asyncio.sleep(0.01)
                raise ValueError("broken")
            if prompt == "waits":
                await asyncio.Event().wait()
            reason = prompt if prompt in ("abort", "error") else "stop"
            yield SimpleNamespace(prompt=prompt, outputs=[SimpleNamespace(finish_reason=reason)])
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.add(prompt)
            raise


async def run(engine: FakeEngine, *prompts: str, n: int = 1) -> Any:
    return await trl_legacy.run(cast(TritonEngineClient, engine), cast(Any, prompts), SamplingParams(n=n))


async def test_outputs_come_in_the_order_of_the_prompts() -> None:
    engine = FakeEngine()
    assert [output.prompt for output in await run(engine, "a", "b", "c", n=4)] == ["a", "b", "c"]
    assert engine.admitted == 12


async def test_when_one_fails_the_others_are_aborted() -> None:
    engine = FakeEngine()
    with pytest.raises(ValueError, match="broken"):
        await run(engine, "waits", "fails")
    await asyncio.sleep(0)
    assert engine.started == {"waits", "fails"}
    assert engine.aborted == {"waits"}


async def test_when_the_client_goes_all_are_aborted() -> None:
    engine = FakeEngine()
    task = asyncio.create_task(run(engine, "waits", "waits"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert engine.aborted == {"waits"}


@pytest.mark.parametrize(("reason", "error"), [("abort", EngineUnavailable), ("error", GenerationError)])
async def test_an_answer_that_is_not_whole_is_an_error(reason: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await run(FakeEngine(), "a", reason)
