"""openai_frontend/guards/pooling.py: what is refused before vLLM renders it."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from openai_frontend.guards.limits import Limits
from openai_frontend.guards.pooling import attach, check, num_inputs

LIMITS = Limits(max_prompts=3)


@pytest.mark.parametrize(
    ("value", "count"),
    [("text", 1), ([1, 2, 3, 4], 1), (["a", "b"], 2), ([[1], [2], [3]], 3), ([], 0), (None, 1), ({"content": []}, 1)],
)
def test_inputs_are_counted(value: Any, count: int) -> None:
    assert num_inputs(value) == count


@pytest.mark.parametrize("name", ["input", "documents", "text_2", "queries", "texts"])
def test_more_inputs_than_the_server_takes_are_refused(name: str) -> None:
    check(SimpleNamespace(**{name: ["a"] * 3}), LIMITS, trust_template=False)
    with pytest.raises(VLLMValidationError, match=f"{name}: at most 3 prompts, the server's --max-prompts"):
        check(SimpleNamespace(**{name: ["a"] * 4}), LIMITS, trust_template=False)


def test_arguments_of_the_tokenizer_are_refused() -> None:
    request = SimpleNamespace(input="a", chat_template_kwargs={"tokenize": True, "max_length": 100_000_000})
    with pytest.raises(VLLMValidationError, match="chat_template_kwargs"):
        check(request, LIMITS, trust_template=False)


async def test_a_request_is_checked_before_it_is_rendered() -> None:
    rendered: list[Any] = []

    async def preprocess(io_processor: Any, ctx: Any) -> None:
        rendered.append(ctx)

    config = SimpleNamespace(trust_request_chat_template=False)
    serving: Any = SimpleNamespace(chat_template_config=config, _preprocessing=preprocess)
    state: Any = SimpleNamespace(serving_pooling=serving, serving_embedding=None)
    attach(state, LIMITS)
    few = SimpleNamespace(request=SimpleNamespace(input=["a"]))
    await serving._preprocessing(None, few)
    with pytest.raises(VLLMValidationError, match="--max-prompts"):
        await serving._preprocessing(None, SimpleNamespace(request=SimpleNamespace(input=["a"] * 4)))
    assert rendered == [few]
