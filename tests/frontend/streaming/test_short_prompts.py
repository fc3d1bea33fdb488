"""short_prompts.py with vLLM's own renderer: the same prompts, and only long ones in a thread."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import renderer_from_config
from vllm.renderers.base import BaseRenderer
from vllm.renderers.params import TokenizeParams

from openai_frontend.streaming.short_prompts import (
    CHARACTERS_PER_TURN,
    MESSAGE_CHARACTERS,
    SHORT_CHARACTERS,
    length,
    render_short_prompts_at_once,
)

SHORT = "The river is long."
LONG = SHORT * (SHORT_CHARACTERS // len(SHORT) + 1)
TOKENIZE = TokenizeParams(max_total_tokens=None)


class CountingExecutor(ThreadPoolExecutor):
    num_jobs = 0

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        self.num_jobs += 1
        return super().submit(*args, **kwargs)


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path) -> Any:
    with mock.patch.dict(os.environ, {"VLLM_CPU_KVCACHE_SPACE": "1"}):
        return AsyncEngineArgs(model=str(tiny_model_dir)).create_engine_config()


class Case:
    """A renderer with the change, an unchanged one of vLLM's, and the threads of the first."""

    def __init__(self, config: Any, *, trust_request_chat_template: bool = False) -> None:
        self.renderer: BaseRenderer = renderer_from_config(config)
        self.vllms: BaseRenderer = renderer_from_config(config)
        self.threads = self.renderer._executor._inner = CountingExecutor(max_workers=1)
        render_short_prompts_at_once(self.renderer, trust_request_chat_template=trust_request_chat_template)

    async def tokenize(self, text: str) -> int:
        """Returns how many jobs went to a thread."""
        before = self.threads.num_jobs
        both = [await each.tokenize_prompts_async([{"prompt": text}], TOKENIZE) for each in (self.renderer, self.vllms)]
        assert both[0] == both[1]
        assert both[0]
        return self.threads.num_jobs - before

    async def chat(self, text: str, *, num_messages: int = 1, **options: Any) -> int:
        before = self.threads.num_jobs
        messages: Any = [{"role": "user", "content": text}] * num_messages
        params = ChatCompletionRequest(model="m", messages=messages, **options).build_chat_params(None, "auto")
        both = [await each.render_messages_async(messages, params) for each in (self.renderer, self.vllms)]
        assert both[0] == both[1]
        return self.threads.num_jobs - before


async def test_only_a_long_text_is_tokenized_in_a_thread(config: Any) -> None:
    case = Case(config)
    assert await case.tokenize(SHORT) == 0
    assert await case.tokenize(LONG) == 1


async def test_only_a_long_chat_or_one_with_more_than_texts_is_rendered_in_a_thread(config: Any) -> None:
    case = Case(config)
    assert await case.chat(SHORT) == 0
    assert await case.chat(LONG) == 1
    assert await case.chat("", num_messages=1000) == 1
    assert (
        await case.chat(SHORT, chat_template_kwargs={"tools": [{"type": "function", "function": {"name": "f"}}]}) == 1
    )
    assert await case.chat(SHORT, documents=[{"text": LONG}]) == 1
    assert await case.chat(SHORT, chat_template_kwargs={"config": LONG, "enable_thinking": False}) == 1
    assert await case.chat(SHORT, chat_template_kwargs={"config": True, "enable_thinking": False}) == 0


async def test_a_clients_template_may_take_for_ever_and_has_a_thread(config: Any) -> None:
    assert await Case(config, trust_request_chat_template=True).chat(SHORT) == 1


async def test_many_at_once_leave_the_loop_to_others(config: Any) -> None:
    case = Case(config)
    prompts: Any = [{"prompt": LONG[:SHORT_CHARACTERS]}] * 100
    await case.renderer.tokenize_prompts_async(prompts, TOKENIZE)
    at_once = CHARACTERS_PER_TURN // SHORT_CHARACTERS
    assert case.threads.num_jobs == 100 - at_once
    await case.renderer.tokenize_prompts_async(prompts[:at_once], TOKENIZE)
    assert case.threads.num_jobs == 100 - at_once, "another turn"


async def test_a_tokenizer_that_is_not_for_several_threads_stays_with_vllms(config: Any) -> None:
    renderer: Any = renderer_from_config(config)
    renderer.tokenizer = SimpleNamespace()  # a slow one, or one of vLLM's own for a model
    before = renderer._tokenize_prompt_async
    render_short_prompts_at_once(renderer, trust_request_chat_template=False)
    assert renderer._tokenize_prompt_async is before


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": SHORT}]},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "assistant"},
    ],
)
def test_what_is_not_plain_text_has_no_length(message: dict[str, Any]) -> None:
    plain = {"role": "user", "content": SHORT}
    assert length([plain, plain], {}) == 2 * len(SHORT) + 2 * MESSAGE_CHARACTERS
    assert length([plain, message], {}) is None
