"""Every difference must be found, and chance must not count as one."""

from copy import deepcopy
from typing import Any

import pytest

from bench.parity.compare import Justification, compare, load_justifications
from bench.parity.comparison import FASTAPI, RUST, Comparison
from bench.parity.shape import Shape

SHAPE = Shape("chat/one", "/v1/chat/completions", {})
ANSWER: dict[str, Any] = {
    "status": 200,
    "content_type": "application/json",
    "headers": {},
    "seconds": 0.1,
    "json": {
        "id": "chatcmpl-0123456789abcdef",
        "created": 1700000000,
        "system_fingerprint": "vllm-0.32.0-0123abcd",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris.", "tool_calls": []},
                "logprobs": {"token_logprobs": [None, -0.5]},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    },
}


def token(text: str, **fields: Any) -> dict[str, Any]:
    """A chat event that carries one token."""
    return {"name": None, "data": {"choices": [{"index": 0, "delta": {"content": text}, "token_ids": [1], **fields}]}}


STREAM: list[dict[str, Any]] = [
    token("The"),
    token(" capital"),
    token(" is"),
    token(" Paris", finish_reason="stop"),
    {"name": None, "data": {"choices": [], "usage": {"completion_tokens": 4}}},
    {"name": None, "data": "[DONE]"},
]


def found(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """The paths that differ between two answers to one shape."""
    return [difference.path for difference in compare({SHAPE.name: left}, {SHAPE.name: right}, [SHAPE], []).open]


def streamed(events: list[dict[str, Any]]) -> dict[str, Any]:
    """An answer that is a stream."""
    return {"status": 200, "content_type": "text/event-stream; charset=utf-8", "headers": {}, "events": events}


def test_an_answer_equals_itself() -> None:
    assert found(ANSWER, deepcopy(ANSWER)) == []


def test_ids_and_times_may_differ() -> None:
    other = deepcopy(ANSWER)
    other["seconds"] = 9.0
    other["json"] |= {
        "id": "chatcmpl-fedcba9876543210",
        "created": 1800000000,
        "system_fingerprint": "vllm-0.32.0-ffff0000",
    }
    assert found(ANSWER, other) == []


def error(message: str) -> dict[str, Any]:
    """An answer that is an error."""
    return {"status": 400, "json": {"error": {"message": message}}}


RANGE = 'n: Validation error: range [{"max": Number(10), "value": Number(99), "min": Number(1)}]'


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("request `cmpl-0123abcd` is empty", "request `cmpl-ffff0000` is empty", True),
        ("request `cmpl-0123abcd` is empty", "request `chatcmpl-ffff0000` is empty", False),
        (RANGE, RANGE.replace('"max": Number(10), ', "").replace("Number(1)", 'Number(1), "max": Number(10)'), True),
        (RANGE, RANGE.replace("10", "11"), False),
    ],
)
def test_ids_and_the_order_of_fields_in_a_message_may_differ(left: str, right: str, same: bool) -> None:
    assert (found(error(left), error(right)) == []) is same


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("status", 400),
        ("content_type", "text/plain"),
        ("headers", {"allow": "GET"}),
        ("json.id", "cmpl-0123456789abcdef"),
        ("json.created", "1700000000"),
        ("json.system_fingerprint", "vllm-0.31.0-0123abcd"),
        ("json.choices.0.message.content", "Rome."),
        ("json.choices.0.message.content", None),
        ("json.choices.0.message.tool_calls", None),
        ("json.choices.0.logprobs.token_logprobs", [None, -0.51]),
        ("json.choices.0.logprobs.token_logprobs", [None, -0.5, -0.1]),
        ("json.choices.0.logprobs.token_logprobs", [0.0, -0.5]),
        ("json.choices.0.finish_reason", "length"),
        ("json.choices.0.index", False),
        ("json.usage.prompt_tokens", 5.0),
    ],
)
def test_a_changed_field_is_found(path: str, value: Any) -> None:
    other = deepcopy(ANSWER)
    *parents, last = path.split(".")
    target: Any = other
    for key in parents:
        target = target[int(key) if isinstance(target, list) else key]
    target[last] = value
    assert len(found(ANSWER, other)) == 1
    assert len(found(other, ANSWER)) == 1


def test_a_field_on_one_side_only_is_found() -> None:
    other = deepcopy(ANSWER)
    del other["json"]["usage"]
    assert found(ANSWER, other) == ["$.json.usage"]
    assert found(other, ANSWER) == ["$.json.usage"]


SPANS = [{"version": "v1", "start": 0, "end": 1}, {"version": "v2", "start": 1, "end": 2}]


@pytest.mark.parametrize("spans", [SPANS, [], None])
def test_the_spans_that_we_add_to_a_choice_are_no_difference(spans: Any) -> None:
    ours = deepcopy(ANSWER)
    ours["json"]["choices"][0]["weight_versions"] = spans
    assert found(ANSWER, ours) == []
    stream = deepcopy(STREAM)
    stream[3]["data"]["choices"][0]["weight_versions"] = spans
    assert found(streamed(STREAM), streamed(stream)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("json", SPANS),
        ("json.choices.0.message", SPANS),
        ("json.choices.0", "v1"),
        ("json.choices.0", [{"version": "v1"}]),
        ("json.choices.0", SPANS[1:]),
    ],
)
def test_the_same_name_anywhere_else_or_with_anything_else_is_one(path: str, value: Any) -> None:
    ours = deepcopy(ANSWER)
    target: Any = {"json": ours["json"]}
    for key in path.split("."):
        target = target[int(key) if isinstance(target, list) else key]
    target["weight_versions"] = value
    assert len(found(ANSWER, ours)) == 1


def test_where_spans_are_vllms_own_they_are_compared() -> None:
    shape = Shape("tokens", "/inference/v1/generate", {})
    theirs, ours = (ANSWER | {"json": {"choices": [{"weight_versions": spans}]}} for spans in (SPANS, SPANS[:1]))
    assert compare({"tokens": theirs}, {"tokens": ours}, [shape], []).open


def test_an_answer_that_is_missing_or_failed_is_found() -> None:
    assert "$.status" in found(ANSWER, {"error": "TimeoutError"})
    assert compare({SHAPE.name: ANSWER}, {}, [SHAPE], []).open


def test_floats_have_a_tolerance() -> None:
    other = deepcopy(ANSWER)
    other["json"]["choices"][0]["logprobs"]["token_logprobs"] = [None, -0.50001]
    assert found(ANSWER, other) == []


def test_a_status_only_shape_ignores_the_body() -> None:
    shape = Shape("metrics", "/metrics", method="GET", only="status")
    left = {"status": 200, "content_type": "text/plain", "text": "a 1"}
    assert compare({"metrics": left}, {"metrics": left | {"text": "a 2"}}, [shape], []).is_ok
    assert not compare({"metrics": left}, {"metrics": left | {"status": 500}}, [shape], []).is_ok


def test_a_stream_equals_itself() -> None:
    assert found(streamed(STREAM), streamed(deepcopy(STREAM))) == []


def test_two_tokens_in_one_event_are_the_same_stream() -> None:
    merged = [token("The capital"), *deepcopy(STREAM[2:])]
    merged[0]["data"]["choices"][0]["token_ids"] = [1, 1]
    assert found(streamed(STREAM), streamed(merged)) == []


def test_a_stream_in_one_lump_is_not_the_same_stream() -> None:
    long = [token("a") for _ in range(12)] + STREAM
    lump = [token("a" * 12), *STREAM]
    lump[0]["data"]["choices"][0]["token_ids"] = [1] * 12
    assert found(streamed(long), streamed(lump))


@pytest.mark.parametrize("position", range(len(STREAM)))
def test_an_event_left_out_is_found(position: int) -> None:
    assert found(streamed(STREAM), streamed(STREAM[:position] + STREAM[position + 1 :]))


def test_a_changed_event_is_found() -> None:
    other = deepcopy(STREAM)
    other[1]["data"]["choices"][0]["delta"]["content"] = " city"
    assert found(streamed(STREAM), streamed(other)) == ["$.events[1].data.choices[0].delta.content"]


def test_a_changed_order_is_found() -> None:
    assert found(streamed(STREAM), streamed([STREAM[1], STREAM[0], *STREAM[2:]]))


def test_a_changed_token_is_found_in_a_stream_chunked_otherwise() -> None:
    merged = [token("The city"), *deepcopy(STREAM[2:])]
    merged[0]["data"]["choices"][0]["token_ids"] = [1, 1]
    assert found(streamed(STREAM), streamed(merged)) == ["$.events.choice0.choices[0].delta.content"]


def test_choices_may_take_turns_in_any_order() -> None:
    first, second = token("a"), token("b")
    second["data"]["choices"][0]["index"] = 1
    assert found(streamed([first, second]), streamed([second, first])) == []


def test_a_difference_can_be_justified_and_a_stale_justification_is_found() -> None:
    right = {SHAPE.name: ANSWER | {"status": 400}}
    reason = Justification("chat/*", "$.status", "because")
    assert compare({SHAPE.name: ANSWER}, right, [SHAPE], [reason]).is_ok
    assert not compare({SHAPE.name: ANSWER}, right, [SHAPE], [Justification("chat/*", "$.json.*", "no")]).is_ok
    stale = compare({SHAPE.name: ANSWER}, {SHAPE.name: ANSWER}, [SHAPE], [reason])
    assert stale.stale == [reason]
    assert not stale.is_ok


def test_brackets_in_a_justified_path_are_not_special() -> None:
    right = deepcopy(ANSWER)
    right["json"]["choices"][0]["finish_reason"] = "length"
    reason = Justification("*", "$.json.choices[0].finish_reason", "because")
    assert compare({SHAPE.name: ANSWER}, {SHAPE.name: right}, [SHAPE], [reason]).is_ok


@pytest.mark.parametrize("chosen", [FASTAPI, RUST])
def test_the_justifications_that_stay_can_be_read(chosen: Comparison) -> None:
    assert all(one.reason for one in load_justifications(chosen.justified))
