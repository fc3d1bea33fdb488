"""Short prompts are rendered and tokenized on the event loop.

vLLM hands every prompt to a thread, so that the loop goes on during a long one. A short prompt takes less time than the
handover. While the loop is busy with other requests, the thread may also wait for the interpreter's lock, up to its
switch interval (5 ms): of many requests that come at once, the first would wait for all.

Without it a front end needs 22 to 34 % more processor time per short chat and 7 to 8 % more per short completion
(docs/fast-path.md).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from openai_frontend.vllm_seam import (
    AsyncRender,
    BaseRenderer,
    HfRenderer,
    ThreadSafeHFTokenizerMixin,
    replace_rendering,
    safe_apply_chat_template,
)

# Rendering so many takes 0.1 to 0.2 ms.
SHORT_CHARACTERS = 1024
# Limit for one turn of the loop, over all requests: one request may have thousands of short prompts.
CHARACTERS_PER_TURN = 16 * SHORT_CHARACTERS
# The cost of a message beside its text.
MESSAGE_CHARACTERS = 64


def render_short_prompts_at_once(renderer: BaseRenderer, *, trust_request_chat_template: bool) -> None:
    """Have `renderer` do so, if its tokenizer may be used by the loop and by a thread at the same time.

    A client's own template may run for ever, so that it stays in vLLM's thread, which has a time limit.
    """
    if not isinstance(renderer, HfRenderer) or not isinstance(renderer.tokenizer, ThreadSafeHFTokenizerMixin):
        return
    budget = Budget()

    def tokenize(
        at_once: Callable[..., Any], in_thread: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        return _within(budget, lambda prompt, params: len(prompt["prompt"]), at_once=at_once, in_thread=in_thread)

    def apply_template(in_thread: AsyncRender) -> AsyncRender:
        return _within(
            budget,
            lambda config, tokenizer, conversation, /, **options: length(conversation, options),
            at_once=safe_apply_chat_template,
            in_thread=in_thread,
        )

    replace_rendering(renderer, tokenize, None if trust_request_chat_template else apply_template)


class Budget:
    """The characters that may still be rendered in this turn of the loop."""

    def __init__(self) -> None:
        self._left = CHARACTERS_PER_TURN

    def take(self, num_characters: int | None) -> bool:
        """Take `num_characters` from the budget. Returns False, and takes none, if fewer are left or for None."""
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
    """Characters of a conversation of plain texts; None if it, or an option for the template, is anything else.

    A template may count up to an option that is a number.
    """
    if any(not isinstance(value, bool | None) for name, value in options.items() if name != "chat_template"):
        return None
    if not all(message.keys() <= {"role", "content"} for message in conversation):
        return None
    contents = [message.get("content") for message in conversation]
    texts = [content for content in contents if isinstance(content, str)]
    if len(texts) < len(contents):
        return None
    return sum(map(len, texts)) + MESSAGE_CHARACTERS * len(texts)
