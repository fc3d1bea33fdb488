"""openai_frontend/guards/serving.py: which of vLLM's objects get the guards' classes and parsers."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.parser.parser_manager import ParserManager

from openai_frontend.guards.chat import GuardedMessages
from openai_frontend.guards.responses import GuardedResponses
from openai_frontend.guards.serving import PARSERS, attach
from openai_frontend.guards.tool_parsing import GuardedParser
from openai_frontend.vllm_seam import AnthropicServingMessages, OpenAIServingResponses


def state(parser: Any) -> Any:
    """The objects of vLLM's `init_app_state` that the guards change."""
    made: Any = SimpleNamespace(
        anthropic_serving_messages=AnthropicServingMessages.__new__(AnthropicServingMessages),
        openai_serving_responses=OpenAIServingResponses.__new__(OpenAIServingResponses),
        online_renderer=SimpleNamespace(),
        openai_serving_chat=SimpleNamespace(),
        openai_serving_chat_batch=SimpleNamespace(),
    )
    for name, attribute in PARSERS.items():
        setattr(getattr(made, name), attribute, parser)
    return made


def test_they_get_the_guards_classes_and_parsers() -> None:
    made = state(ParserManager.get_parser(tool_parser_name="hermes", enable_auto_tools=True))
    attach(made)
    assert type(made.anthropic_serving_messages) is GuardedMessages
    assert type(made.openai_serving_responses) is GuardedResponses
    assert all(issubclass(getattr(getattr(made, name), each), GuardedParser) for name, each in PARSERS.items())


def test_without_a_parser_there_is_none() -> None:
    made = state(None)
    attach(made)
    assert made.openai_serving_chat.parser_cls is None


def test_an_object_of_another_class_is_an_error() -> None:
    made = state(None)
    made.openai_serving_responses = SimpleNamespace(parser=None)
    with pytest.raises(TypeError, match="openai_serving_responses"):
        attach(made)
