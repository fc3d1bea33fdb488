"""openai_frontend/guards/json_text.py: what a body may not contain, and that ordinary bodies are not parsed."""

import json
from unittest import mock

import pytest

from openai_frontend.guards import json_text
from openai_frontend.guards.json_text import MAX_DEPTH, MAX_KEYS, find_fault


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        (rb'{"stop":["a","x\ud83e"]}', "stop.1", "lone surrogate"),
        (rb'{"stop":"\uDE00\ud83d"}', "stop", "lone surrogate"),
        (rb'{"stop":"\ud83d\ud83d\ude00"}', "stop", "lone surrogate"),
        (rb'{"stop":"\\\ud83d"}', "stop", "lone surrogate"),
        (rb'{"a":{"\ud83e":1}}', "a", "a key"),
        (b'{"stop":"\xed\xa0\xbd"}', None, "not UTF-8"),
        (b'{"stop":"\xff"}', None, "not UTF-8"),
        (json.dumps({"a": 1}).encode("utf-16-le"), None, "NUL"),
        (json.dumps({"a": 1}).encode("utf-32"), None, "not UTF-8"),
        (b'{"top_k":18446744073709551616}', "top_k", "64 bits"),
        (b'{"top_k":-9223372036854775809}', "top_k", "64 bits"),
        (b'{"a":[{"b":[0,1180591620717411303424]}]}', "a.0.b.1", "64 bits"),
        (b'{"a":' + b"9" * 5000 + b"}", None, "digits"),
        (b'{"temperature":NaN}', "temperature", "finite"),
        (b'{"a":[-Infinity]}', "a.0", "finite"),
        (b'{"logit_bias":{"5":1e999}}', "logit_bias.5", "finite"),
        (b'{"a":1E+400}', "a", "finite"),
        (b'{"a":' + b"9" * 400 + b".0}", "a", "finite"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), None, "deeper than 100"),
        (b'{"a":' * 20_000, None, "deeper than 100"),
        (b'{"a":"' + b"]" * 500 + b'","b":' + b"[" * 200 + b"]" * 200 + b"}", None, "deeper than 100"),
        (rb'{"a":"\\","b":' + b"[" * 200 + b"]" * 200 + b"}", None, "deeper than 100"),
        (json.dumps({f"k{number}": 1 for number in range(MAX_KEYS + 1)}).encode(), None, "keys"),
        (b"[" + b"1," * 4_000_001 + b"1]", None, "values"),
    ],
)
def test_what_cannot_be_passed_on_is_found_by_name(body: bytes, field: str | None, reason: str) -> None:
    fault = find_fault(body)
    assert fault is not None
    assert fault[0] == field
    assert reason in fault[1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON NaN",
        rb'{"stop":"\ud83d\ude00 \\ud83e"}',
        '{"stop":"😀 é"}'.encode(),
        b'{"a":9223372036854775807,"b":-9223372036854775808,"c":18446744073709551615}',
        b'{"a":"NaN, Infinity and 12345678901234567890 in a text, 1e999"}',
        b'{"a":1e300,"b":0.12345678901234567890}',
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        json.dumps({"a": "[{" * 100_000 + '"]' * 10}).encode(),
        json.dumps({"a": ":," * 5_000_000}).encode(),
        json.dumps({"prompt": [[1, 2]] * 1000}).encode(),
    ],
)
def test_what_only_looks_like_it_passes(body: bytes) -> None:
    assert find_fault(body) is None


def test_an_ordinary_body_is_not_parsed() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "What is the capital of France? 😀"}], "n": 4}).encode()
    with mock.patch.object(json_text.json, "loads", side_effect=AssertionError("parsed")):
        assert find_fault(body) is None
        assert find_fault(json.dumps({"prompt": [list(range(4000))] * 300}).encode()) is None
