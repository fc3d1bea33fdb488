"""What a client may ask of the routes that embed, classify and score.

vLLM renders their prompts without the renderer that rendering.py guards, and all at once, however many there are.
"""

from collections.abc import Sequence
from typing import Any

from starlette.datastructures import State

from openai_frontend.guards.fan_out import check_fan_out
from openai_frontend.guards.limits import Limits
from openai_frontend.guards.rendering import check_template_kwargs
from openai_frontend.vllm_seam import watch_pooling

SERVING = ("serving_pooling", "serving_embedding", "serving_classification", "serving_scores")
"""Names of vLLM's serving objects; those that the model has no use for are None."""
INPUTS = ("input", "inputs", "texts", "documents", "items", "queries", "text_1", "text_2", "data_1", "data_2")
"""Fields of requests that hold one input or several."""


def attach(state: State, limits: Limits) -> None:
    """Guard the serving objects that vLLM's `init_app_state` made."""
    for name in SERVING:
        if (serving := getattr(state, name, None)) is not None:
            watch_pooling(serving, lambda request, trusted: check(request, limits, trust_template=trusted))


def check(request: Any, limits: Limits, *, trust_template: bool) -> None:
    """Raises VLLMValidationError for a request with too many inputs, or with arguments that are the tokenizer's.

    trust_template: whether a client may send a template of its own.
    """
    for name in INPUTS:
        check_fan_out(limits, num_inputs(getattr(request, name, None)), 1, prompts_field=name)
    check_template_kwargs(getattr(request, "chat_template_kwargs", None), trust_template=trust_template)


def num_inputs(value: Any) -> int:
    """Number of prompts in a field: texts, or lists of token ids. One list of token ids is one prompt."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return 1
    return 1 if value and isinstance(value[0], int) else len(value)
