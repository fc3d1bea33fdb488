"""Which weights made which tokens, in every choice of /v1/completions and /v1/chat/completions.

vLLM's output processor tracks the spans of each generation, but only its token-in-token-out route shows them. Here its
OpenAI routes show them, too, in the same field: `weight_versions`, a list of `{"version", "start", "end"}` that covers
the choice's generated tokens `[start, end)` in order. A stream has it in the chunk with the choice's `finish_reason`.
It is null where vLLM does not know (beam search). A choice that a pushed adapter made (adapters.py) has, beside it,
`adapter_version`: NAME@VERSION; others have no such field.

This is all that leans on how vLLM's serving objects build their answers; a test runs it on
vLLM's own builders, so that an upgrade which moves them fails there.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any

from pydantic import BaseModel
from starlette.datastructures import State
from vllm.outputs import CompletionOutput, RequestOutput

from openai_frontend.adapters import version_of
from openai_frontend.streaming import shortcut
from openai_frontend.streaming.stamped import stamped
from openai_frontend.streaming.stamps import Stamps
from openai_frontend.vllm_seam import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    ErrorResponse,
    OpenAIServingChat,
    OpenAIServingChatBatch,
    OpenAIServingCompletion,
    change_class,
    should_include_usage,
)

FIELD = "weight_versions"
ADAPTER_FIELD = "adapter_version"

Spans = list[dict[str, Any]] | None
Fields = dict[str, Any]


class VersionedCompletion(OpenAIServingCompletion):
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
            return vllms(request, engine_inputs, results, *args, **kwargs)

        vllms = super().completion_stream_generator
        num_choices = request.n or 1
        is_bare = request.logprobs is None and is_text_only(request, self.enable_force_include_usage)
        return stamped(
            result_generator,
            lambda item: (item[0] * num_choices, item[1]),
            build,
            stamps=Stamps("text") if is_bare else None,
            finish=with_fields,
            way=shortcut.current.get() if len(engine_inputs) == 1 else None,
        )

    def request_output_to_completion_response(
        self, final_res_batch: list[RequestOutput], *args: Any, **kwargs: Any
    ) -> CompletionResponse:
        response = super().request_output_to_completion_response(final_res_batch, *args, **kwargs)
        add_fields(response.choices, final_res_batch)
        return response


class VersionedChat(OpenAIServingChat):
    """/v1/chat/completions."""

    def chat_completion_stream_generator(
        self,
        request: ChatCompletionRequest,
        result_generator: AsyncIterator[RequestOutput],
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        def build(results: AsyncIterator[RequestOutput]) -> AsyncGenerator[str, None]:
            return vllms(request, results, *args, **kwargs)

        vllms = super().chat_completion_stream_generator
        # A parser and a log want to see every piece of text.
        is_watched = request.logprobs or self.parser_cls is not None or self.enable_log_outputs
        is_bare = not is_watched and is_text_only(request, self.enable_force_include_usage)
        return stamped(
            result_generator,
            lambda result: (0, result),
            build,
            stamps=Stamps("content") if is_bare else None,
            finish=with_fields,
            way=shortcut.current.get(),
        )

    async def chat_completion_full_generator(
        self,
        request: ChatCompletionRequest,
        result_generator: AsyncIterator[RequestOutput],
        *args: Any,
        **kwargs: Any,
    ) -> ErrorResponse | ChatCompletionResponse:
        last = LastOf(result_generator)
        response = await super().chat_completion_full_generator(request, aiter(last), *args, **kwargs)
        if isinstance(response, ChatCompletionResponse):
            add_fields(response.choices, last.results)
        return response


class VersionedChatBatch(OpenAIServingChatBatch):
    """/v1/chat/completions/batch: one choice per conversation."""

    async def chat_completion_full_generator_batch(
        self,
        request: Any,
        generators: list[AsyncGenerator[RequestOutput, None]],
        *args: Any,
        **kwargs: Any,
    ) -> ErrorResponse | ChatCompletionResponse:
        lasts = [LastOf(generator) for generator in generators]
        watched = [aiter(last) for last in lasts]
        response = await super().chat_completion_full_generator_batch(request, watched, *args, **kwargs)
        if isinstance(response, ChatCompletionResponse):
            add_fields(response.choices, (result for last in lasts for result in last.results))
        return response


VERSIONED = {
    "openai_serving_completion": (OpenAIServingCompletion, VersionedCompletion),
    "openai_serving_chat": (OpenAIServingChat, VersionedChat),
    "openai_serving_chat_batch": (OpenAIServingChatBatch, VersionedChatBatch),
}


def attach(state: State) -> None:
    """Have the serving objects that vLLM's `init_app_state` made show the spans. Raises TypeError if they are others.

    Only their class changes, to one without attributes of its own: vLLM makes them from dozens of settings.
    """
    for name, (theirs, ours) in VERSIONED.items():
        change_class(getattr(state, name), theirs, ours, name)


class LastOf:
    """Passes results on and keeps the last one, in a list."""

    def __init__(self, results: AsyncIterator[RequestOutput]) -> None:
        self.results: list[RequestOutput] = []
        self._all = results

    async def __aiter__(self) -> AsyncGenerator[RequestOutput, None]:
        async for result in self._all:
            self.results = [result]
            yield result


def spans(output: CompletionOutput) -> Spans:
    """As JSON; None where vLLM did not track them."""
    if output.weight_versions is None:
        return None
    # Not `asdict`, which copies deeply: this stands in every answer.
    return [{"version": span.version, "start": span.start, "end": span.end} for span in output.weight_versions]


def fields(result: RequestOutput, output: CompletionOutput) -> Fields:
    """What a choice made from `output` has in addition."""
    adapter = version_of(result.lora_request)
    return {FIELD: spans(output)} | ({} if adapter is None else {ADAPTER_FIELD: adapter})


def add_fields(choices: Iterable[BaseModel], results: Iterable[RequestOutput]) -> None:
    """Give each choice of a whole response those of the output it was made from; vLLM keeps their order."""
    added = (fields(result, output) for result in results for output in result.outputs)
    for choice, each in zip(choices, added, strict=True):
        for name, value in each.items():
            setattr(choice, name, value)  # vLLM's models allow further fields


def is_text_only(request: CompletionRequest | ChatCompletionRequest, enable_force_include_usage: bool) -> bool:
    """Whether the events between a stream's first and last have nothing that changes but their text."""
    _, has_usage_in_each = should_include_usage(request.stream_options, enable_force_include_usage)
    return not request.return_token_ids and not has_usage_in_each


def with_fields(first_choice: int, result: RequestOutput) -> Callable[[str], str]:
    """What puts the fields of the choices that end in `result` into the events made of it."""
    ended = {
        first_choice + each.index: fields(result, each) for each in result.outputs if each.finish_reason is not None
    }
    return (lambda event: label(event, ended)) if ended else str


def label(event: str, ended: dict[int, Fields]) -> str:
    """`event` with the spans of its choice taken out of `ended`; as it is unless it has a `finish_reason`."""
    if not event.startswith("data: {"):
        return event
    chunk = json.loads(event.removeprefix("data: "))
    last = [choice for choice in chunk.get("choices", ()) if choice.get("finish_reason") and choice["index"] in ended]
    if not last:
        return event
    for choice in last:
        choice.update(ended.pop(choice["index"]))
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
