"""Has the serving objects that vLLM made take the guards' classes and parsers."""

from starlette.datastructures import State

from openai_frontend.guards.chat import GuardedMessages
from openai_frontend.guards.responses import GuardedResponses
from openai_frontend.guards.tool_parsing import guarded
from openai_frontend.vllm_seam import AnthropicServingMessages, OpenAIServingResponses, change_class

CLASSES = {
    "anthropic_serving_messages": (AnthropicServingMessages, GuardedMessages),
    "openai_serving_responses": (OpenAIServingResponses, GuardedResponses),
}
"""By the name of the serving object, vLLM's class and ours. weight_spans.py has those of completions and chat."""
PARSERS = {
    "anthropic_serving_messages": "parser_cls",
    "online_renderer": "parser",
    "openai_serving_chat": "parser_cls",
    "openai_serving_chat_batch": "parser_cls",
    "openai_serving_responses": "parser",
}
"""By the name of the object, its attribute with the parser's class."""


def attach(state: State) -> None:
    """Call it after vLLM's `init_app_state`. Raises TypeError if vLLM made objects of other classes."""
    for name, (theirs, ours) in CLASSES.items():
        change_class(getattr(state, name), theirs, ours, name)
    for name, attribute in PARSERS.items():
        owner = getattr(state, name)
        setattr(owner, attribute, guarded(getattr(owner, attribute)))
