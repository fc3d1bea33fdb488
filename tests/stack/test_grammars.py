"""Structured outputs through every door: what compiles works whatever came before, and what does not is refused."""

import json
from typing import Any

import httpx
import pytest

from tritonlive.launch import Stack

from .conftest import MODEL
from .doors import CHAT, DOORS, front_end

STREAM = [False, True]
USER = [{"role": "user", "content": "Hello"}]


@pytest.mark.row(48)
@pytest.mark.parametrize("door", DOORS)
def test_grammars_for_different_compilers_work_one_after_the_other(stack: Stack, door: str) -> None:
    for regex in ("(Paris|London)", "(?i)paris", "(Rome|Oslo)", r"\p{Lu}x"):
        answer = DOORS[door](stack, {"structured_outputs": {"regex": regex}, "max_tokens": 8})
        assert answer.status == 200, answer.text


@pytest.mark.row(48)
def test_each_compiler_constrains_its_answer(stack: Stack) -> None:
    expected = {
        "(Paris|London)": {"Paris", "London"},
        "(?i)ab": {"ab", "Ab", "aB", "AB"},
        "a[bc]": {"ab", "ac"},
    }
    for regex, texts in expected.items():
        body = CHAT | {"structured_outputs": {"regex": regex}, "max_tokens": 16}
        answer = front_end(stack, "/v1/chat/completions", body)
        assert json.loads(answer.text)["choices"][0]["message"]["content"] in texts


@pytest.mark.row(9)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("regex", "reason"),
    [("\\", "within an escape"), (r"[\p{L}]+", "does not know"), ("(?=a)b", "look-around"), ("(", "")],
)
def test_a_regex_that_cannot_be_compiled_is_refused_at_every_door(
    stack: Stack, door: str, regex: str, reason: str
) -> None:
    answer = DOORS[door](stack, {"structured_outputs": {"regex": regex}, "max_tokens": 8})
    assert answer.status == 400, answer.text
    assert "structured_outputs" in answer.text
    assert reason in answer.text


@pytest.mark.row(9)
@pytest.mark.parametrize("stream", STREAM)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"structured_outputs": {"json": {"$ref": "#"}}}),
        ("/v1/chat/completions", {"structured_outputs": {"grammar": "root ::= root"}}),
        (
            "/v1/chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
        ),
        ("/v1/responses", {"structured_outputs": {"regex": "\\"}}),
    ],
    ids=["schema", "grammar", "response_format", "responses"],
)
def test_a_refusal_is_400_before_a_stream_begins(stack: Stack, path: str, body: dict[str, Any], stream: bool) -> None:
    prompt = {"input": "Hello"} if path.endswith("responses") else {"messages": USER, "max_tokens": 8}
    answer = front_end(stack, path, {"model": MODEL, **prompt, **body, "stream": stream})
    assert answer.status == 400, answer.text
    assert "message" in json.loads(answer.text)["error"]


def test_a_stream_with_a_grammar_streams(stack: Stack) -> None:
    body = CHAT | {"structured_outputs": {"regex": "a{20}"}, "max_tokens": 30, "stream": True}
    text = front_end(stack, "/v1/chat/completions", body).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "a" * 20
    assert text.rstrip().endswith("[DONE]")


def test_a_stream_of_responses_has_all_its_events(stack: Stack) -> None:
    body = {"model": MODEL, "input": "Hello", "max_output_tokens": 4, "stream": True}
    text = front_end(stack, "/v1/responses", body).text
    events = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert events[0] == "response.created"
    assert events[-1] in ("response.completed", "response.incomplete")


def test_a_chat_is_answered_afterwards(frontend: httpx.Client) -> None:
    assert frontend.post("/v1/chat/completions", json=CHAT | {"max_tokens": 4}).status_code == 200
