"""What a client may ask of the renderer: chat templates, their arguments, and the size of texts.

vLLM 0.32 passes `chat_template_kwargs` on to `PreTrainedTokenizer.apply_chat_template`, which takes arguments of the
tokenizer, too: `{"tokenize": true, "padding": "max_length", "max_length": 100000000}` took 10 GB (CVE-2025-62426 was
the same with other arguments; `resolve_chat_template_kwargs` still accepts the base class's parameters). It limits the
characters of a prompt by the model's context, but not for /tokenize or with `truncate_prompt_tokens`.

Lone surrogates are refused in bodies (json_text.py), but vLLM parses JSON within JSON: the arguments of a message's
tool calls. From there they reach the tokenizer, which raises "TypeError: TextEncodeInput must be Union[...]" (500).
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from starlette.datastructures import State
from vllm.exceptions import VLLMValidationError

from openai_frontend.guards.fan_out import check_fan_out
from openai_frontend.guards.limits import Limits
from openai_frontend.vllm_seam import (
    BaseRenderer,
    OnlineRenderer,
    OpenAIServingChatBatch,
    change_class,
    template_parameters,
    watch_texts,
)
from tritonlive.wire.plain_values import is_encodable

# What a template may use; vLLM sets all but `documents` from fields of their own.
TEMPLATE_VARIABLES = frozenset({"documents", "tools", "add_generation_prompt", "continue_final_message"})
# It needs --trust-request-chat-template.
TEMPLATE = frozenset({"chat_template"})


class GuardedRenderer(OnlineRenderer):
    """vLLM's renderer of all routes with messages or prompts."""

    limits: Limits

    async def preprocess_chat(self, request: Any, messages: Any, *args: Any, **kwargs: Any) -> Any:
        check_fan_out(self.limits, 1, getattr(request, "n", None) or 1, prompts_field="messages")
        template_kwargs = getattr(request, "chat_template_kwargs", None)
        check_template_kwargs(template_kwargs, trust_template=self.trust_request_chat_template)
        return await super().preprocess_chat(request, messages, *args, **kwargs)

    async def preprocess_cmpl(self, request: Any, prompts: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        check_fan_out(self.limits, len(prompts), getattr(request, "n", None) or 1, prompts_field="prompt")
        return await super().preprocess_cmpl(request, prompts, *args, **kwargs)


class LimitedChatBatch(OpenAIServingChatBatch):
    """/v1/chat/completions/batch, which renders one conversation after the other."""

    async def render_batch_chat_request(self, request: Any) -> Any:
        limits: Limits = cast(GuardedRenderer, self.online_renderer).limits
        check_fan_out(limits, len(request.messages), request.n or 1, prompts_field="messages")
        return await super().render_batch_chat_request(request)


def attach(state: State, limits: Limits) -> None:
    """Guard the renderer that vLLM's `init_app_state` made. Raises TypeError if it is of another class."""
    change_class(state.online_renderer, OnlineRenderer, GuardedRenderer, "online_renderer").limits = limits


def check_template_kwargs(template_kwargs: Mapping[str, Any] | None, *, trust_template: bool) -> None:
    """Raises VLLMValidationError for arguments that are not the template's but the tokenizer's.

    trust_template: whether a client may send a template of its own.
    """
    if not template_kwargs:
        return
    allowed = TEMPLATE_VARIABLES | TEMPLATE if trust_template else TEMPLATE_VARIABLES
    if refused := (template_parameters() - allowed) & template_kwargs.keys():
        raise VLLMValidationError(
            f"chat_template_kwargs: {', '.join(sorted(refused))} may not be set by a request, only variables of the "
            "chat template",
            parameter="chat_template_kwargs",
        )


def check_texts(renderer: BaseRenderer, max_model_len: int) -> None:
    """Have `renderer` refuse a text that is longer than any prompt of `max_model_len` tokens, or that is no Unicode."""
    tokenizer = renderer.tokenizer
    if tokenizer is None:
        return
    limit = max_model_len * tokenizer.max_chars_per_token

    def check(text: str) -> None:
        if len(text) > limit:
            raise VLLMValidationError(
                f"the text has {len(text)} characters; the context of {max_model_len} tokens has at most {limit}",
                parameter="prompt",
            )
        if not is_encodable(text):
            raise VLLMValidationError(
                "the prompt has text that UTF-8 cannot encode (a lone surrogate); a tool call's arguments may "
                "have it as \\ud800 to \\udfff",
                parameter="prompt",
            )

    watch_texts(renderer, check)
