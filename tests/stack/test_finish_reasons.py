"""A generation that the engine ends in an error is an error at every door. docs/serving.md has the table of reasons.

The engine fails for real: a grammar demands a token that `allowed_token_ids` forbids.
"""

import json
from typing import Any

import httpx
import pytest

from tritonlive.launch import Stack

from .conftest import MODEL
from .doors import CHAT, DOORS, PROMPT, front_end

pytestmark = pytest.mark.row(49)


@pytest.fixture(scope="module")
def letter(frontend: httpx.Client) -> int:
    """The token of "P"."""
    body = {"model": MODEL, "prompt": "P", "add_special_tokens": False}
    (token,) = frontend.post("/tokenize", json=body).json()["tokens"]
    return token


@pytest.mark.parametrize("door", DOORS)
def test_a_generation_that_fails_at_once_is_an_error(stack: Stack, letter: int, door: str) -> None:
    params: dict[str, Any] = {"structured_outputs": {"regex": "a"}, "allowed_token_ids": [letter], "max_tokens": 8}
    answer = DOORS[door](stack, params)
    assert answer.status == (400 if "native" in door else 500), answer.text  # Triton's HTTP says 400 for INTERNAL
    assert "ended in an error" in answer.text


@pytest.mark.parametrize("door", [door for door in DOORS if "stream" not in door])
def test_a_whole_answer_that_fails_after_some_tokens_is_an_error(stack: Stack, letter: int, door: str) -> None:
    params: dict[str, Any] = {"structured_outputs": {"regex": "PPPPa"}, "allowed_token_ids": [letter], "max_tokens": 8}
    answer = DOORS[door](stack, params)
    assert answer.status == (400 if door == "native" else 500), answer.text


@pytest.mark.parametrize(("path", "prompt"), [("/v1/chat/completions", CHAT), ("/v1/completions", PROMPT)])
def test_a_stream_that_fails_after_some_tokens_ends_with_an_error(
    stack: Stack, letter: int, path: str, prompt: dict[str, Any]
) -> None:
    params: dict[str, Any] = {"structured_outputs": {"regex": "PPPPa"}, "allowed_token_ids": [letter], "stream": True}
    answer = front_end(stack, path, prompt | params)
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert answer.status == 200
    assert chunks[-1]["error"]["code"] == 500
    assert not any(choice["finish_reason"] for chunk in chunks[:-1] for choice in chunk["choices"])


def test_a_native_stream_that_fails_after_some_tokens_ends_with_an_error(stack: Stack, letter: int) -> None:
    params: dict[str, Any] = {"structured_outputs": {"regex": "PPPPa"}, "allowed_token_ids": [letter]}
    answer = DOORS["native stream"](stack, params)
    assert "ended in an error" in answer.text
    assert '"finish_reason":"stop"' not in answer.text.replace(" ", "")


def test_a_chat_is_answered_afterwards(frontend: httpx.Client) -> None:
    assert frontend.post("/v1/chat/completions", json=CHAT | {"max_tokens": 4}).status_code == 200
