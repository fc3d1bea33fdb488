"""Which weights made which tokens, in every choice of /v1/completions and /v1/chat/completions.

vLLM's output processor tracks the spans of each generation, but only its token-in-token-out route shows them. Here the
OpenAI routes show them, too, in the same field: `weight_versions`, a list of `{"version", "start", "end"}` that covers
the choice's generated tokens `[start, end)` in order. A stream has it in the chunk with the choice's `finish_reason`.
It is null where vLLM does not know (beam search). A choice that a pushed adapter made (adapters.py) has, beside it,
`adapter_version`: NAME@VERSION; others have no such field.

A test runs this on vLLM's own response builders, so that an upgrade which moves them fails there.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.datastructures import State
from vllm.outputs import CompletionOutput, RequestOutput

from openai_frontend.adapters import version_of
from openai_frontend.guards.chat import GuardedChat
from openai_frontend.guards.completions import GuardedCompletion
from openai_frontend.guards.rendering import LimitedChatBatch
from openai_frontend.last_of import LastOf
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
)

FIELD = "weight_versions"
ADAPTER_FIELD = "adapter_version"

T = TypeVar("T")
Spans = list[dict[str, Any]] | None
Fields = dict[str, Any]


class VersionedCompletion(GuardedCompletion):
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
        return labelled(result_generator, lambda item: (item[0] * num_choices, item[1]), build)

    def request_output_to_completion_response(
        self, final_res_batch: list[RequestOutput], *args: Any, **kwargs: Any
    ) -> CompletionResponse:
        response = super().request_output_to_completion_response(final_res_batch, *args, **kwargs)
        add_fields(response.choices, final_res_batch)
        return response


class VersionedChat(GuardedChat):
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
        return labelled(result_generator, lambda result: (0, result), build)

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


class VersionedChatBatch(LimitedChatBatch):
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


def attach(state: State, classes: Mapping[str, tuple[type, type]] = VERSIONED) -> None:
    """Have the serving objects that vLLM's `init_app_state` made show the spans. Raises TypeError if they are others.

    classes: by the name of the serving object, vLLM's class and ours. Ours has no attributes of its own.
    """
    for name, (theirs, ours) in classes.items():
        change_class(getattr(state, name), theirs, ours, name)


async def labelled(
    items: AsyncIterator[T],
    result_of: Callable[[T], tuple[int, RequestOutput]],
    build: Callable[[AsyncIterator[T]], AsyncGenerator[str, None]],
) -> AsyncGenerator[str, None]:
    """The chunks of the generator that `build` makes over `items`, with the spans of the choices that end.

    result_of: the number of the first choice in an item, and the item's result.
    """
    ended: dict[int, Fields] = {}

    async def noted() -> AsyncIterator[T]:
        async for item in items:
            ended.update(fields_of_ended(*result_of(item)))
            yield item

    chunks = build(noted())
    try:
        async for chunk in chunks:
            yield label(chunk, ended) if ended else chunk
    finally:
        await chunks.aclose()


def spans(output: CompletionOutput) -> Spans:
    """Version spans as JSON; None if vLLM did not track them."""
    if output.weight_versions is None:
        return None
    # Not `asdict`, which copies deeply: this stands in every answer.
    return [{"version": span.version, "start": span.start, "end": span.end} for span in output.weight_versions]


def fields(result: RequestOutput, output: CompletionOutput) -> Fields:
    """Additional fields of a choice made from `output`."""
    adapter = version_of(result.lora_request)
    return {FIELD: spans(output)} | ({} if adapter is None else {ADAPTER_FIELD: adapter})


def add_fields(choices: Iterable[BaseModel], results: Iterable[RequestOutput]) -> None:
    """Give each choice of a whole response those of the output it was made from; vLLM keeps their order."""
    added = (fields(result, output) for result in results for output in result.outputs)
    for choice, each in zip(choices, added, strict=True):
        for name, value in each.items():
            setattr(choice, name, value)  # vLLM's models allow further fields


def fields_of_ended(first_choice: int, result: RequestOutput) -> dict[int, Fields]:
    """The fields of the choices that end in `result`, by the number of the choice."""
    ended = [output for output in result.outputs if output.finish_reason is not None]
    return {first_choice + output.index: fields(result, output) for output in ended}


def label(event: str, ended: dict[int, Fields]) -> str:
    """`event` with the fields of its choice, which are taken out of `ended`; unchanged without a `finish_reason`."""
    if not event.startswith("data: {"):
        return event
    chunk = msgspec.json.decode(event.removeprefix("data: "))
    last = [choice for choice in chunk.get("choices", ()) if choice.get("finish_reason") and choice["index"] in ended]
    if not last:
        return event
    for choice in last:
        choice.update(ended.pop(choice["index"]))
    return f"data: {msgspec.json.encode(chunk).decode()}\n\n"
