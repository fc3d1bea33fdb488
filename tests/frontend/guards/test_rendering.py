"""openai_frontend/guards/rendering.py: the arguments of chat templates."""

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from vllm.exceptions import VLLMValidationError

from openai_frontend.guards.rendering import check_template_kwargs, check_texts


@pytest.mark.parametrize(
    "name",
    [
        *("tokenize", "padding", "max_length", "truncation", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "conversation", "model_config", "tokenizer"),
        "chat_template",
    ],
)
def test_an_argument_of_the_tokenizer_is_refused(name: str) -> None:
    with pytest.raises(VLLMValidationError, match=f"^chat_template_kwargs: {name} may not") as refused:
        check_template_kwargs({name: 1, "enable_thinking": True}, trust_template=False)
    assert refused.value.parameter == "chat_template_kwargs"


def test_variables_of_the_template_pass() -> None:
    check_template_kwargs(None, trust_template=False)
    check_template_kwargs({"enable_thinking": True, "documents": [], "reasoning_effort": "low"}, trust_template=False)
    check_template_kwargs({"chat_template": "x"}, trust_template=True)


@pytest.fixture
def renderer() -> Any:
    """What of vLLM's renderer gets texts."""
    tokenizer = SimpleNamespace(max_chars_per_token=4)
    renderer: Any = SimpleNamespace(
        tokenizer=tokenizer,
        _tokenize_prompt_async=AsyncMock(return_value=[1]),
        _tokenize_prompt=lambda prompt, params: [1],
    )
    check_texts(renderer, max_model_len=10)
    return renderer


@pytest.mark.parametrize("text", ["", "a" * 40, "é" * 40, "\U0001f469\u200d\U0001f680", "\0"])
def test_a_text_that_may_be_a_prompt_is_tokenized(renderer: Any, text: str) -> None:
    assert asyncio.run(renderer._tokenize_prompt_async({"prompt": text}, None)) == [1]
    assert renderer._tokenize_prompt({"prompt": text}, None) == [1]


@pytest.mark.row(12)
@pytest.mark.parametrize(
    ("text", "reason"), [("a" * 41, "41 characters"), ("a\ud83e", "surrogate"), ("\udfff", "surrogate")]
)
def test_a_text_that_no_prompt_can_be_is_refused(renderer: Any, text: str, reason: str) -> None:
    for tokenize in (renderer._tokenize_prompt_async, renderer._tokenize_prompt):
        with pytest.raises(VLLMValidationError, match=reason) as refused:
            tokenize({"prompt": text}, None)
        assert refused.value.parameter == "prompt"
