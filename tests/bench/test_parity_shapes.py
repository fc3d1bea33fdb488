"""The requests of a parity run, and the checks their answers must pass."""

from typing import Any

import pytest

from bench.parity.checks import CHECKS, failures, messages
from bench.parity.profiles import PROFILES
from bench.parity.shape import Shape, both_ways
from bench.parity.shapes import all_shapes
from bench.parity.shapes.tools import WEATHER

GOOD_CALL = {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "celsius"}'}
SHAPE = Shape(
    "tools", "/v1/chat/completions", {"tools": [WEATHER]}, checks=("calls_in_tool_calls", "arguments_validate")
)


def chat_answer(**message: Any) -> dict[str, Any]:
    """A chat answer with one choice."""
    return {"status": 200, "json": {"choices": [{"message": message, "finish_reason": "stop"}]}}


def test_there_are_many_shapes_with_names_of_their_own() -> None:
    names = [shape.name for shape in all_shapes()]
    assert len(names) >= 80
    assert len(set(names)) == len(names)


def test_every_shape_has_a_server_and_checks_that_exist() -> None:
    for shape in all_shapes():
        assert shape.profile in PROFILES
        assert set(shape.checks) <= CHECKS.keys()


def test_only_a_json_body_can_stream() -> None:
    with pytest.raises(TypeError, match="raw"):
        both_ways(Shape("raw", "/", b"x"))


def test_a_good_call_passes() -> None:
    answer = chat_answer(content=None, tool_calls=[{"function": GOOD_CALL}])
    assert failures({"tools": answer}, [SHAPE]) == []


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"content": "<tool_call>…", "tool_calls": []}, "no tool call"),
        ({"content": "left over", "tool_calls": [{"function": GOOD_CALL}]}, "content beside the call"),
        ({"content": None, "tool_calls": [{"function": GOOD_CALL | {"name": "other"}}]}, "no tool is called"),
        ({"content": None, "tool_calls": [{"function": GOOD_CALL | {"arguments": '{"city": 5}'}}]}, "city"),
        ({"content": None, "tool_calls": [{"function": GOOD_CALL | {"arguments": "{"}}]}, "Expecting"),
    ],
)
def test_a_bad_call_fails(message: dict[str, Any], problem: str) -> None:
    assert any(problem in line for line in failures({"tools": chat_answer(**message)}, [SHAPE]))


def test_an_error_answer_fails() -> None:
    assert len(failures({"tools": {"status": 500}}, [SHAPE])) == 2


def test_a_streamed_call_is_put_together() -> None:
    def event(**delta: Any) -> dict[str, Any]:
        return {"name": None, "data": {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}}

    events = [
        event(role="assistant", content=""),
        event(tool_calls=[{"index": 0, "id": "call_1", "function": {"name": "get_weather", "arguments": ""}}]),
        event(tool_calls=[{"index": 0, "function": {"arguments": '{"city": "Paris", '}}]),
        event(tool_calls=[{"index": 0, "function": {"arguments": '"unit": "celsius"}'}}]),
        {"name": None, "data": {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}},
        {"name": None, "data": "[DONE]"},
    ]
    answer = {"status": 200, "events": events}
    assert messages(answer) == [{"content": "", "tool_calls": [GOOD_CALL], "finish_reason": "tool_calls"}]
    assert failures({"tools": answer}, [SHAPE]) == []
