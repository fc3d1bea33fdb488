"""openai_frontend/short_prompts.py, with vLLM's own renderer: the same prompts, and only long ones in a thread."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.renderers import renderer_from_config
from vllm.renderers.base import BaseRenderer
from vllm.renderers.params import ChatParams, TokenizeParams

from openai_frontend.short_prompts import SHORT_CHARACTERS, is_short, render_short_prompts_at_once

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
    """A renderer that does so, one that is as vLLM made it, and the threads of the first."""

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

    async def chat(self, text: str, **kwargs: Any) -> int:
        before = self.threads.num_jobs
        messages: Any = [{"role": "user", "content": text}]
        params = ChatParams(chat_template_kwargs={"add_generation_prompt": True, **kwargs})
        both = [await each.render_messages_async(messages, params) for each in (self.renderer, self.vllms)]
        assert both[0] == both[1]
        return self.threads.num_jobs - before


async def test_only_a_long_text_is_tokenized_in_a_thread(config: Any) -> None:
    case = Case(config)
    assert await case.tokenize(SHORT) == 0
    assert await case.tokenize(LONG) == 1


async def test_only_a_long_chat_or_one_with_tools_is_rendered_in_a_thread(config: Any) -> None:
    case = Case(config)
    assert await case.chat(SHORT) == 0
    assert await case.chat(LONG) == 1
    assert await case.chat(SHORT, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]) == 1


async def test_a_clients_template_may_take_for_ever_and_has_a_thread(config: Any) -> None:
    assert await Case(config, trust_request_chat_template=True).chat(SHORT) == 1


def test_what_is_not_plain_text_is_not_short() -> None:
    assert is_short([{"role": "user", "content": SHORT}, {"role": "assistant", "content": SHORT}])
    assert not is_short([{"role": "user", "content": [{"type": "text", "text": SHORT}]}])
    assert not is_short([{"role": "assistant", "tool_calls": []}])
    assert not is_short([{"role": "user", "content": "x" * SHORT_CHARACTERS}, {"role": "user", "content": "x"}])
