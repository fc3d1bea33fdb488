"""Short prompts are rendered and tokenized where they come in, on the event loop.

vLLM hands every prompt to a thread. For a long one that is right: the loop goes on meanwhile. A short one takes less
time than the handing over. And while the loop is busy with other requests the thread may have to wait for the
interpreter's lock, up to its switch interval (5 ms): of many requests that come at once the first waits for all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from vllm.renderers.base import BaseRenderer
from vllm.renderers.hf import HfRenderer, safe_apply_chat_template
from vllm.tokenizers.hf import ThreadSafeHFTokenizerMixin

# A tenth of a millisecond, or two.
SHORT_CHARACTERS = 1024
# What may be rendered in one turn of the loop, whoever asks for it: a request may have thousands of short prompts.
CHARACTERS_PER_TURN = 16 * SHORT_CHARACTERS
# A message costs about this much, whatever is in it.
MESSAGE_CHARACTERS = 64


def render_short_prompts_at_once(renderer: BaseRenderer, *, trust_request_chat_template: bool) -> None:
    """Have `renderer` do so, if its tokenizer may be used by the loop and by a thread at the same time.

    A client's own template may take for ever: it stays where vLLM can give it up.
    """
    if not isinstance(renderer, HfRenderer) or not isinstance(renderer.tokenizer, ThreadSafeHFTokenizerMixin):
        return
    budget = Budget()
    renderer._tokenize_prompt_async = _within(
        budget,
        lambda prompt, params: len(prompt["prompt"]),
        at_once=renderer._tokenize_prompt,
        in_thread=renderer._tokenize_prompt_async,
    )
    if not trust_request_chat_template:
        renderer._apply_chat_template_async = _within(
            budget,
            lambda config, tokenizer, conversation, /, **options: length(conversation, options),
            at_once=safe_apply_chat_template,
            in_thread=renderer._apply_chat_template_async,
        )


class Budget:
    """Characters that are still to be had in this turn of the loop."""

    def __init__(self) -> None:
        self._left = CHARACTERS_PER_TURN

    def take(self, num_characters: int | None) -> bool:
        """Whether so many were left; None is too many."""
        if num_characters is None or num_characters > min(self._left, SHORT_CHARACTERS):
            return False
        if self._left == CHARACTERS_PER_TURN:
            asyncio.get_running_loop().call_soon(self._renew)
        self._left -= num_characters
        return True

    def _renew(self) -> None:
        self._left = CHARACTERS_PER_TURN


def _within(
    budget: Budget,
    length: Callable[..., int | None],
    *,
    at_once: Callable[..., Any],
    in_thread: Callable[..., Awaitable[Any]],
) -> Callable[..., Awaitable[Any]]:
    async def render(*args: Any, **kwargs: Any) -> Any:
        if budget.take(length(*args, **kwargs)):
            return at_once(*args, **kwargs)
        return await in_thread(*args, **kwargs)

    return render


def length(conversation: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> int | None:
    """Characters of a conversation of plain texts; None if it, or an option for the template, is anything else."""
    if any(not isinstance(value, bool | int | None) for name, value in options.items() if name != "chat_template"):
        return None
    if not all(message.keys() <= {"role", "content"} for message in conversation):
        return None
    contents = [message.get("content") for message in conversation]
    texts = [content for content in contents if isinstance(content, str)]
    if len(texts) < len(contents):
        return None
    return sum(map(len, texts)) + MESSAGE_CHARACTERS * len(texts)
