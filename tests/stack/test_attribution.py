"""Every token is attributed to the weights that made it; a request may ask for a minimum version."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, ConflictError, OpenAI

from tritonlive.launch import Stack

from .conftest import MODEL
from .marked_weights import version_of

ROOT = Path(__file__).parents[2]
NUM_TOKENS = 10_000
NUM_VERSIONS = 5
NUM_CLIENTS = 24
TOKENS_PER_CHOICE = 150
LIMIT_S = 120.0

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
EXTRA = {"return_token_ids": True, "ignore_eos": True}
NATIVE = {
    "input_ids": [5, 6, 7],
    "sampling_parameters": json.dumps({"max_tokens": TOKENS_PER_CHOICE, "ignore_eos": True}),
    "return_token_ids": True,
}


@dataclass(frozen=True)
class Generation:
    """One choice: its tokens, and the spans of versions that the server gave for them."""

    tokens: list[int]
    spans: list[dict[str, Any]]

    @property
    def versions(self) -> list[str]:
        return [span["version"] for span in self.spans]

    def misattributed(self, shift: int = 0) -> int:
        """Number of tokens that other weights made than their span says; `shift` moves the spans' inner borders."""
        borders = [0, *(span["end"] + shift for span in self.spans[:-1]), len(self.tokens)]
        labels = [
            span["version"] for span, (a, b) in zip(self.spans, pairwise(borders), strict=True) for _ in range(a, b)
        ]
        return sum(version_of(token) != label for token, label in zip(self.tokens, labels, strict=True))

    def is_covered(self) -> bool:
        """Whether the spans cover the tokens in order, and follow each other only where the version changes."""
        borders = [0, *(span["end"] for span in self.spans)]
        starts_fit = [span["start"] for span in self.spans] == borders[:-1] and borders[-1] == len(self.tokens)
        return (
            starts_fit and all(a != b for a, b in pairwise(self.versions)) and all(a < b for a, b in pairwise(borders))
        )


def of_choice(choice: dict[str, Any]) -> Generation:
    return Generation(choice["token_ids"], choice["weight_versions"])


async def of_stream(stream: Any, num_choices: int) -> list[Generation]:
    tokens: list[list[int]] = [[] for _ in range(num_choices)]
    spans: list[Any] = [None] * num_choices
    async for event in stream:
        for choice in event.model_dump()["choices"]:
            tokens[choice["index"]] += choice.get("token_ids") or []
            if choice["finish_reason"]:
                spans[choice["index"]] = choice["weight_versions"]
            else:
                assert "weight_versions" not in choice
    return [Generation(*each) for each in zip(tokens, spans, strict=True)]


class Clients:
    """Clients for each way to generate."""

    def __init__(self, openai: AsyncOpenAI, http: httpx.AsyncClient, native_url: str, api_key: str | None) -> None:
        self.openai, self.http, self.native_url = openai, http, native_url
        self.native_body = {**NATIVE, "api_key": api_key}
        self.ways = (
            self.completion,
            self.completion_stream,
            self.chat,
            self.chat_stream,
            self.native,
            self.native_stream,
        )
        self.options: dict[str, Any] = {
            "model": MODEL,
            "max_tokens": TOKENS_PER_CHOICE,
            "extra_body": EXTRA,
        }

    async def completion(self) -> list[Generation]:
        answer = await self.openai.completions.create(prompt=["One", "Two"], n=2, **self.options)
        return [of_choice(choice.model_dump()) for choice in answer.choices]

    async def completion_stream(self) -> list[Generation]:
        stream = await self.openai.completions.create(prompt=["One", "Two"], n=2, stream=True, **self.options)
        return await of_stream(stream, 4)

    async def chat(self) -> list[Generation]:
        answer = await self.openai.chat.completions.create(messages=MESSAGES, n=2, **self.options)
        return [of_choice(choice.model_dump()) for choice in answer.choices]

    async def chat_stream(self) -> list[Generation]:
        stream = await self.openai.chat.completions.create(messages=MESSAGES, n=2, stream=True, **self.options)
        return await of_stream(stream, 2)

    async def native(self) -> list[Generation]:
        answer = (await self.http.post(f"{self.native_url}/generate", json=self.native_body)).raise_for_status().json()
        return [Generation(answer["token_ids"], json.loads(answer["weight_version_spans"]))]

    async def native_stream(self) -> list[Generation]:
        tokens: list[int] = []
        body = {**self.native_body, "stream": True}
        async with self.http.stream("POST", f"{self.native_url}/generate_stream", json=body) as answer:
            async for line in answer.aiter_lines():
                if line:
                    event = json.loads(line.removeprefix("data: "))
                    ids = event["token_ids"]
                    tokens += ids if isinstance(ids, list) else [ids]
        return [Generation(tokens, json.loads(event["weight_version_spans"]))]


@contextmanager
def pushing(stack: Stack, checkpoint: Path) -> Iterator[list[str]]:
    """A trainer that pushes every second. Appends each version that went live to the list."""
    command = [sys.executable, "-m", "tests.stack.marked_weights", stack.frontend_url, str(checkpoint)]
    environment = os.environ | {"TRITONLIVE_CONTROL_KEY": stack.control_key or ""}
    live: list[str] = []
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            live.append(process.stdout.readline().strip())
            reader = threading.Thread(target=lambda: live.extend(line.strip() for line in process.stdout or ()))
            reader.start()
            yield live
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            finally:
                process.kill()
        reader.join(10)
    assert process.returncode == 0


def test_every_token_is_attributed_to_the_weights_that_made_it(
    stack: Stack, async_openai: AsyncOpenAI, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generations: list[Generation] = []
    deadline = time.monotonic() + LIMIT_S

    def is_enough() -> bool:
        tokens = sum(len(generation.tokens) for generation in generations)
        versions = {version for generation in generations for version in generation.versions}
        return (tokens >= NUM_TOKENS and len(versions) >= NUM_VERSIONS) or time.monotonic() > deadline

    async def client(clients: Clients, number: int) -> None:
        while not is_enough():
            generations.extend(await clients.ways[number % len(clients.ways)]())

    async def generate() -> None:
        native_url = f"{stack.http_url}/v2/models/llm"
        async with async_openai, httpx.AsyncClient(timeout=120) as http:
            clients = Clients(async_openai, http, native_url, stack.api_key)
            await asyncio.gather(*(client(clients, number) for number in range(NUM_CLIENTS)))

    with pushing(stack, tiny_model_dir) as live:
        assert live == ["step-0"]
        began, num_before = time.monotonic(), len(live)
        asyncio.run(generate())
        seconds, num_pushes = time.monotonic() - began, len(live) - num_before

    tokens = sum(len(generation.tokens) for generation in generations)
    misattributed = sum(generation.misattributed() for generation in generations)
    versions = {version for generation in generations for version in generation.versions}
    crossing = [generation for generation in generations if len(generation.spans) > 1]
    with capsys.disabled():
        print(  # noqa: T201 - what this test is for
            f"\n{tokens} tokens in {len(generations)} choices, made by {len(versions)} versions "
            f"({num_pushes} pushes in {seconds:.1f} s), {len(crossing)} choices by more than one: "
            f"{misattributed} misattributed"
        )
    assert misattributed == 0
    assert all(generation.is_covered() for generation in generations)
    assert tokens >= NUM_TOKENS
    assert len(versions) >= NUM_VERSIONS
    assert versions <= set(live)
    # Spans one token off would have been noticed.
    assert len(crossing) >= NUM_CLIENTS
    assert all(generation.misattributed(shift) for generation in crossing for shift in (-1, 1))


@pytest.fixture
def version(stack: Stack, control: Callable[..., dict[str, Any]]) -> Iterator[str]:
    """The weights are called v7 for a test."""
    before = control("get_weight_version")["weight_version"]
    control("update_weight_version", new_version="v7")
    yield "v7"
    control("update_weight_version", new_version=before)


def complete(openai: OpenAI, minimum: str | None) -> Any:
    headers = {} if minimum is None else {"x-min-weight-version": minimum}
    return openai.completions.with_raw_response.create(model=MODEL, prompt="x", max_tokens=1, extra_headers=headers)


@pytest.mark.parametrize("minimum", [None, "v7", "v6"])
def test_weights_that_are_new_enough_answer(openai: OpenAI, version: str, minimum: str | None) -> None:
    assert complete(openai, minimum).headers["x-weight-version"] == version


@pytest.mark.parametrize(
    ("minimum", "message"), [("v8", "older than the requested 'v8'"), ("step-1", "cannot be compared")]
)
def test_older_weights_refuse_and_say_which_they_are(openai: OpenAI, version: str, minimum: str, message: str) -> None:
    with pytest.raises(ConflictError, match=message) as refusal:
        complete(openai, minimum)
    assert f"'{version}'" in refusal.value.message
    assert refusal.value.response.headers["x-weight-version"] == version


def test_the_natives_refuse_them_too(triton: Callable[[dict[str, Any]], httpx.Response], version: str) -> None:
    answers = [triton({**NATIVE, "min_weight_version": minimum}) for minimum in ("v6", version, "v8")]
    assert [answer.is_success for answer in answers] == [True, True, False], answers[-1].text
    assert "older than the requested 'v8' [ALREADY_EXISTS]" in answers[-1].text


def test_the_next_request_after_a_commit_is_served(openai: OpenAI, control: Callable[..., Any], version: str) -> None:
    """The front end learns the new version also when another way changed the weights."""
    for number in range(8, 28):
        control("update_weight_version", new_version=f"v{number}")
        assert complete(openai, f"v{number}").headers["x-weight-version"] == f"v{number}"
