"""/v1/responses: the last event of a stream that was cut short, and requests that the server cannot serve.

Faults of vllm.entrypoints.openai.responses.serving in vLLM 0.32:

- A stream that `max_output_tokens` cuts short ends in `response.completed`; it is `response.incomplete` (open pull
  request vllm#45386). Its last item says `completed`, too.
- `previous_response_id` of an answer that was not stored is 404 without a word about the switch. None yet.
- `tool_choice` other than `auto` without a tool parser is answered with text; chat refuses it. None yet.
"""

from collections.abc import AsyncGenerator
from typing import Any, Literal

from openai.types.responses import ResponseIncompleteEvent, ResponseOutputItemDoneEvent

from openai_frontend.vllm_seam import (
    ErrorResponse,
    OpenAIServingResponses,
    ResponseCompletedEvent,
    ResponsesRequest,
    ResponsesResponse,
)

STORE_SWITCH = "VLLM_ENABLE_RESPONSES_API_STORE=1"


class IncompleteEvent(ResponseIncompleteEvent):
    """The last event of a stream that was cut short, with vLLM's type of response."""

    type: Literal["response.incomplete"] = "response.incomplete"
    response: ResponsesResponse  # ty: ignore[incompatible-attribute-override]


class GuardedResponses(OpenAIServingResponses):
    """vLLM's, with its answers mended."""

    async def create_responses(self, *args: Any, **kwargs: Any) -> Any:
        result = await super().create_responses(*args, **kwargs)
        return mended(result) if isinstance(result, AsyncGenerator) else result

    async def retrieve_responses(self, *args: Any, **kwargs: Any) -> Any:
        result = await super().retrieve_responses(*args, **kwargs)
        return mended(result) if isinstance(result, AsyncGenerator) else result

    async def responses_full_generator(self, *args: Any, **kwargs: Any) -> ErrorResponse | ResponsesResponse:
        response = await super().responses_full_generator(*args, **kwargs)
        if isinstance(response, ResponsesResponse) and response.status == "incomplete" and response.output:
            mark_incomplete(response.output[-1])
        return response

    def _validate_create_responses_input(self, request: ResponsesRequest) -> ErrorResponse | None:
        if request.previous_response_id and not self.enable_store:
            return self.refused(
                "previous_response_id",
                f"this server stores no responses; start it with {STORE_SWITCH} in its environment, or send the "
                "earlier messages in input",
            )
        has_parser = self.use_harmony or getattr(self.parser, "tool_parser_cls", None) is not None
        is_free = request.tool_choice in ("auto", "none") or getattr(request.tool_choice, "mode", None) == "auto"
        if request.tools and not is_free and not has_parser:
            return self.refused("tool_choice", "calls can be required of a server with --tool-call-parser only")
        return super()._validate_create_responses_input(request)

    def refused(self, field: str, reason: str) -> ErrorResponse:
        return self.create_error_response(err_type="invalid_request_error", message=f"{field}: {reason}", param=field)


def mark_incomplete(item: Any) -> None:
    if getattr(item, "status", None) == "completed":
        item.status = "incomplete"


async def mended(stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The events of a stream. The end of an item is held until the next event says whether the response is complete."""
    held: ResponseOutputItemDoneEvent | None = None
    try:
        async for event in stream:
            is_cut = isinstance(event, ResponseCompletedEvent) and event.response.status == "incomplete"
            if held is not None:
                if is_cut:
                    mark_incomplete(held.item)
                yield held
                held = None
            if isinstance(event, ResponseOutputItemDoneEvent):
                held = event
            elif is_cut:
                yield IncompleteEvent(response=event.response, sequence_number=event.sequence_number)
            else:
                yield event
        if held is not None:
            yield held
    finally:
        await stream.aclose()
