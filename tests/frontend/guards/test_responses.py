"""openai_frontend/guards/responses.py: events of streams, and what is refused."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputItemDoneEvent
from vllm.sampling_params import SamplingParams

from openai_frontend.guards.responses import STORE_SWITCH, GuardedResponses, mended
from openai_frontend.vllm_seam import ResponseCompletedEvent, ResponsesRequest, ResponsesResponse

TOOL: Any = {"type": "function", "name": "f", "parameters": {}, "strict": None}


class Serving(GuardedResponses):
    """Without an engine."""

    def __init__(self, *, enable_store: bool = False, tool_parser: type | None = None) -> None:
        self.enable_store, self.use_harmony = enable_store, False
        self.parser: Any = SimpleNamespace(tool_parser_cls=tool_parser) if tool_parser else None


def item() -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(arguments="", call_id="c", name="f", type="function_call", status="completed")


def ended(status: Any) -> list[Any]:
    """The last two events of vLLM's stream."""
    request = ResponsesRequest(model="m", input="x")
    response = ResponsesResponse.from_request(
        request, SamplingParams(), model_name="m", created_time=0, output=[item()], status=status, usage=None
    )
    done = ResponseOutputItemDoneEvent(item=item(), output_index=0, sequence_number=3, type="response.output_item.done")
    return [done, ResponseCompletedEvent(type="response.completed", sequence_number=4, response=response)]


def through(events: list[Any]) -> list[Any]:
    async def each() -> AsyncGenerator[Any, None]:
        for event in events:
            yield event

    async def run() -> list[Any]:
        return [event async for event in mended(each())]

    return asyncio.run(run())


def test_a_stream_that_was_cut_short_ends_in_response_incomplete() -> None:
    done, last = through(ended("incomplete"))
    assert (last.type, last.sequence_number) == ("response.incomplete", 4)
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert '"type":"response.incomplete"' in last.model_dump_json(by_alias=True)
    assert done.item.status == "incomplete"


def test_a_complete_stream_is_vllms() -> None:
    events = ended("completed")
    assert through(events) == events
    assert through([events[0], events[0]]) == [events[0], events[0]]
    assert events[0].item.status == "completed"


@pytest.mark.parametrize(
    ("serving", "options", "param", "advice"),
    [
        (Serving(), {"previous_response_id": "resp_1"}, "previous_response_id", STORE_SWITCH),
        (Serving(), {"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "--tool-call-parser"),
        (Serving(), {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "--tool-call"),
        (Serving(enable_store=True), {"previous_response_id": "resp_1"}, None, ""),
        (Serving(tool_parser=int), {"tools": [TOOL], "tool_choice": "required"}, None, ""),
        (Serving(), {"tools": [TOOL]}, None, ""),
        (Serving(), {"tools": [TOOL], "tool_choice": "none"}, None, ""),
    ],
)
def test_what_the_server_cannot_serve_is_refused_with_the_switch(
    serving: Serving, options: dict[str, Any], param: str | None, advice: str
) -> None:
    refused = serving._validate_create_responses_input(ResponsesRequest(model="m", input="x", **options))
    assert (refused.error.param if refused else None) == param
    if refused:
        assert refused.error.code == 400
        assert advice in refused.error.message
