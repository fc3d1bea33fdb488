"""The serving objects of weight_spans.py whose streams are made of templates where that changes no byte."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from vllm.outputs import RequestOutput

from openai_frontend.guards.chat import GuardedChat
from openai_frontend.guards.completions import GuardedCompletion
from openai_frontend.streaming import fast_path
from openai_frontend.streaming.chunk_templates import ChunkTemplates
from openai_frontend.streaming.templated import templated
from openai_frontend.streaming.weight_spans import (
    VERSIONED,
    VersionedChat,
    VersionedCompletion,
    fields_of_ended,
    label,
)
from openai_frontend.vllm_seam import (
    ChatCompletionRequest,
    CompletionRequest,
    OpenAIServingChat,
    OpenAIServingCompletion,
    should_include_usage,
)


class TemplatedCompletion(VersionedCompletion):
    """/v1/completions."""

    def completion_stream_generator(
        self,
        request: CompletionRequest,
        engine_inputs: Any,
        result_generator: AsyncIterator[tuple[int, RequestOutput]],
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        def build(results: AsyncIterator[tuple[int, RequestOutput]]) -> AsyncGenerator[str, None]:
            vllms = GuardedCompletion.completion_stream_generator
            return vllms(self, request, engine_inputs, results, *args, **kwargs)

        num_choices = request.n or 1
        is_bare = request.logprobs is None and is_text_only(request, self.enable_force_include_usage)
        return templated(
            result_generator,
            lambda item: (item[0] * num_choices, item[1]),
            build,
            templates=ChunkTemplates("text") if is_bare else None,
            finish=with_fields,
            fast_path=fast_path.current.get() if len(engine_inputs) == 1 else None,
        )


class TemplatedChat(VersionedChat):
    """/v1/chat/completions."""

    def chat_completion_stream_generator(
        self,
        request: ChatCompletionRequest,
        result_generator: AsyncIterator[RequestOutput],
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        def build(results: AsyncIterator[RequestOutput]) -> AsyncGenerator[str, None]:
            vllms = GuardedChat.chat_completion_stream_generator
            return vllms(self, request, results, *args, **kwargs)

        # A parser and a log need every piece of text.
        is_watched = request.logprobs or self.parser_cls is not None or self.enable_log_outputs
        is_bare = not is_watched and is_text_only(request, self.enable_force_include_usage)
        return templated(
            result_generator,
            lambda result: (0, result),
            build,
            templates=ChunkTemplates("content") if is_bare else None,
            finish=with_fields,
            fast_path=fast_path.current.get(),
        )


TEMPLATED = VERSIONED | {
    "openai_serving_completion": (OpenAIServingCompletion, TemplatedCompletion),
    "openai_serving_chat": (OpenAIServingChat, TemplatedChat),
}
"""Like VERSIONED in weight_spans.py."""


def is_text_only(request: CompletionRequest | ChatCompletionRequest, enable_force_include_usage: bool) -> bool:
    """Whether nothing but the text changes between a stream's first chunk and its last."""
    _, has_usage_in_each = should_include_usage(request.stream_options, enable_force_include_usage)
    return not request.return_token_ids and not has_usage_in_each


def with_fields(first_choice: int, result: RequestOutput) -> Callable[[str], str]:
    """Returns a function that puts the fields of the choices that end in `result` into the chunks made of it."""
    ended = fields_of_ended(first_choice, result)
    return (lambda chunk: label(chunk, ended)) if ended else str
