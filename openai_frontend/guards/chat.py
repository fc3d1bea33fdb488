"""/v1/chat/completions and /v1/messages: the `finish_reason` of tool calls.

Faults of vllm.entrypoints.openai.chat_completion.serving in vLLM 0.32 (vllm#53255); no version without them yet:

- A whole answer says `tool_calls` for a call that `max_tokens` cut short, where a stream says `length`; and for
  `required` without any call.
- Both say `tool_calls` for a call that a stop string cut short. Here that is `stop`, as for text.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput

from openai_frontend.guards import anthropic_errors, events
from openai_frontend.last_of import LastOf
from openai_frontend.vllm_seam import (
    AnthropicServingMessages,
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ErrorResponse,
    OpenAIServingChat,
)


class GuardedChat(OpenAIServingChat):
    """vLLM's, with its answers mended."""

    def chat_completion_stream_generator(
        self, request: ChatCompletionRequest, result_generator: AsyncIterator[RequestOutput], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        chunks = super().chat_completion_stream_generator(request, result_generator, *args, **kwargs)
        return mended(chunks) if request.tools and request.stop else chunks

    async def chat_completion_full_generator(
        self, request: ChatCompletionRequest, result_generator: AsyncIterator[RequestOutput], *args: Any, **kwargs: Any
    ) -> ErrorResponse | ChatCompletionResponse:
        if not request.tools:
            return await super().chat_completion_full_generator(request, result_generator, *args, **kwargs)
        last = LastOf(result_generator)
        response = await super().chat_completion_full_generator(request, aiter(last), *args, **kwargs)
        if isinstance(response, ChatCompletionResponse):
            is_named = isinstance(request.tool_choice, ChatCompletionNamedToolChoiceParam)
            outputs = [output for result in last.results for output in result.outputs]
            for choice, output in zip(response.choices, outputs, strict=True):
                choice.finish_reason = finish_reason(output, choice.message.tool_calls, is_named=is_named)
        return response


class GuardedMessages(GuardedChat, AnthropicServingMessages):
    """/v1/messages: also leaves out a whole answer's call without complete arguments, which it cannot show.

    vLLM decodes the arguments of every call (`messages_full_converter` in vllm.entrypoints.anthropic.serving).
    """

    async def chat_completion_full_generator(self, *args: Any, **kwargs: Any) -> ErrorResponse | ChatCompletionResponse:
        response = await super().chat_completion_full_generator(*args, **kwargs)
        if isinstance(response, ChatCompletionResponse):
            for choice in response.choices:
                calls = choice.message.tool_calls
                choice.message.tool_calls = [call for call in calls if is_json(call.function.arguments)]
        return response

    def message_stream_converter(self, generator: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        return anthropic_errors.converted(generator, super().message_stream_converter)


def finish_reason(output: CompletionOutput, calls: list[Any], *, is_named: bool) -> str:
    """As in a stream: `tool_calls` for complete calls that were not named by the request, else the engine's reason."""
    reason = output.finish_reason or "stop"
    if not calls or is_named or reason != "stop":
        return reason
    was_cut = isinstance(output.stop_reason, str) and not is_json(calls[-1].function.arguments)
    return reason if was_cut else "tool_calls"


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def mended(chunks: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events of a stream with tools and stop strings."""
    arguments: dict[int, str] = {}  # of the last call, by choice
    try:
        async for event in chunks:
            chunk = events.parse(event) if '"tool_calls"' in event else None
            if chunk is None:
                yield event
                continue
            for choice in chunk.get("choices", ()):
                index = choice["index"]
                for call in choice["delta"].get("tool_calls") or ():
                    if call.get("id"):
                        arguments[index] = ""
                    arguments[index] = arguments.get(index, "") + (call["function"].get("arguments") or "")
                was_stopped = isinstance(choice.get("stop_reason"), str)
                if choice.get("finish_reason") == "tool_calls" and was_stopped and not is_json(arguments[index]):
                    choice["finish_reason"] = "stop"
                    event = events.render(chunk)
            yield event
    finally:
        await chunks.aclose()
