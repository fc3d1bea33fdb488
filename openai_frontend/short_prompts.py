"""Short prompts are rendered and tokenized where they come in, on the event loop.

vLLM hands every prompt to a thread. For a long one that is right: the loop goes on meanwhile. A short one takes less
time than the handing over. And while the loop is busy with other requests the thread may have to wait for the
interpreter's lock, up to its switch interval (5 ms): of many requests that come at once the first waits for all.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from vllm.renderers.base import BaseRenderer
from vllm.renderers.hf import HfRenderer, safe_apply_chat_template

# A tenth of a millisecond, or two.
SHORT_CHARACTERS = 1024


def render_short_prompts_at_once(renderer: BaseRenderer, *, trust_request_chat_template: bool) -> None:
    """Have `renderer` do so. A client's own template may take for ever: it stays where vLLM can give it up."""
    renderer._tokenize_prompt_async = _when(
        lambda prompt, params: len(prompt["prompt"]) <= SHORT_CHARACTERS,
        at_once=renderer._tokenize_prompt,
        in_thread=renderer._tokenize_prompt_async,
    )
    if isinstance(renderer, HfRenderer) and not trust_request_chat_template:
        renderer._apply_chat_template_async = _when(
            lambda config, tokenizer, conversation, *, tools=None, **options: not tools and is_short(conversation),
            at_once=safe_apply_chat_template,
            in_thread=renderer._apply_chat_template_async,
        )


def _when(
    is_short: Callable[..., bool], *, at_once: Callable[..., Any], in_thread: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    async def render(*args: Any, **kwargs: Any) -> Any:
        if is_short(*args, **kwargs):
            return at_once(*args, **kwargs)
        return await in_thread(*args, **kwargs)

    return render


def is_short(conversation: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all its messages are plain texts and together short."""
    contents = [message.get("content") for message in conversation]
    texts = [content for content in contents if isinstance(content, str)]
    return len(texts) == len(contents) and sum(map(len, texts)) <= SHORT_CHARACTERS
