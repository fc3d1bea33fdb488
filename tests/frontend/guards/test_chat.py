"""openai_frontend/guards/chat.py: the reason with which a call ends."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.outputs import CompletionOutput

from openai_frontend.guards.chat import finish_reason, mended


def calls(*arguments: str) -> list[Any]:
    return [SimpleNamespace(function=SimpleNamespace(arguments=each)) for each in arguments]


def output(reason: str, stop_reason: int | str | None = None) -> CompletionOutput:
    return CompletionOutput(0, "", [1], None, None, finish_reason=reason, stop_reason=stop_reason)


@pytest.mark.row(47)
@pytest.mark.parametrize(
    ("reason", "stop_reason", "arguments", "is_named", "expected"),
    [
        ("stop", None, ["{}"], False, "tool_calls"),
        ("stop", 2, ["{}", "{}"], False, "tool_calls"),
        ("stop", None, ["{}"], True, "stop"),
        ("stop", None, [], False, "stop"),
        ("stop", "}", ['{"a": 1'], False, "stop"),
        ("stop", "}", [""], False, "stop"),
        ("stop", "</tool_call>", ["{}"], False, "tool_calls"),
        ("length", None, ["{}"], False, "length"),
        ("length", None, [], False, "length"),
        ("abort", None, ["{}"], False, "abort"),
    ],
)
def test_only_complete_calls_end_in_tool_calls(
    reason: str, stop_reason: Any, arguments: list[str], is_named: bool, expected: str
) -> None:
    assert finish_reason(output(reason, stop_reason), calls(*arguments), is_named=is_named) == expected


def chunk(reason: str | None, *deltas: dict[str, Any], stop_reason: Any = None, index: int = 0) -> str:
    delta = {"tool_calls": list(deltas)} if deltas else {}
    choice = {"index": index, "delta": delta, "finish_reason": reason, "stop_reason": stop_reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def call(arguments: str | None, **first: Any) -> dict[str, Any]:
    return {"index": 0, "function": {"arguments": arguments}, **first}


def reasons(*chunks: str) -> list[Any]:
    async def each() -> AsyncGenerator[str, None]:
        for event in (*chunks, "data: [DONE]\n\n"):
            yield event

    async def run() -> list[str]:
        return [event async for event in mended(each())]

    events = asyncio.run(run())
    assert events[-1] == "data: [DONE]\n\n"
    found = [json.loads(event.removeprefix("data: "))["choices"][0]["finish_reason"] for event in events[:-1]]
    return [reason for reason in found if reason]


@pytest.mark.row(47)
def test_a_streamed_call_that_a_stop_string_cut_short_ends_in_stop() -> None:
    begun, rest = chunk(None, call(None, id="a")), chunk(None, call('{"a": 1'))
    assert reasons(begun, rest, chunk("tool_calls", stop_reason="}")) == ["stop"]
    assert reasons(begun, rest, chunk("tool_calls", call("}"), stop_reason="x")) == ["tool_calls"]
    assert reasons(begun, rest, chunk("tool_calls", stop_reason=2)) == ["tool_calls"]
    assert reasons(
        begun, chunk(None, call("{}")), chunk(None, call('{"b', id="b")), chunk("tool_calls", stop_reason="}")
    ) == ["stop"]
