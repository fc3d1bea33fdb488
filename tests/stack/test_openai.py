"""The OpenAI API, through the official SDK."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from tritonlive.launch import Stack

from .conftest import MODEL, bearer

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


def test_chat_streams_what_it_answers_whole(openai: OpenAI) -> None:
    whole = openai.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=20)
    stream = openai.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_n_sequences_with_a_seed_are_reproducible(openai: OpenAI) -> None:
    def sample() -> list[str]:
        answer = openai.completions.create(model=MODEL, prompt="Once", n=3, temperature=1, seed=7, max_tokens=8)
        return [choice.text for choice in answer.choices]

    first = sample()
    assert len(set(first)) == 3
    assert sample() == first


def test_a_stop_string_ends_the_text_before_it(openai: OpenAI) -> None:
    whole = openai.completions.create(model=MODEL, prompt="Once", temperature=0, max_tokens=20).choices[0].text
    stop = whole[12:16]
    cut = openai.completions.create(model=MODEL, prompt="Once", temperature=0, max_tokens=20, stop=[stop]).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_logprobs_and_token_ids_agree(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL,
        prompt=[1, 2, 3],
        temperature=0,
        max_tokens=5,
        logprobs=2,
        extra_body={"return_token_ids": True, "return_tokens_as_token_ids": True},
    )
    choice = answer.choices[0].model_dump()
    assert choice["prompt_token_ids"] == [1, 2, 3]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": [1, 999_999]}, "vocabulary"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "n": 0}, "n must be"),
        ({"prompt": "x" * 20_000}, "maximum context length"),
        ({"prompt": "x", "structured_outputs": {"regex": "("}}, "regex"),
    ],
)
def test_a_bad_request_names_its_fault(frontend: httpx.Client, body: dict, field: str) -> None:
    answer = frontend.post("/v1/completions", json={"model": MODEL, **body})
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]


def test_an_unknown_model_is_not_found(openai: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        openai.completions.create(model="other", prompt="x")


def test_a_conversation_without_messages_is_refused(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError):
        openai.chat.completions.create(model=MODEL, messages=[])


def test_tokenize_there_and_back(frontend: httpx.Client) -> None:
    tokens = frontend.post("/tokenize", json={"model": MODEL, "prompt": "Hello there"}).json()["tokens"]
    assert frontend.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"] == "Hello there"


def test_probes(frontend: httpx.Client, metric: Callable[[str], float]) -> None:
    assert frontend.get("/health").status_code == 200
    assert frontend.get("/version").json()["version"].startswith("0.")
    text = frontend.get("/metrics").text
    assert "vllm:generation_tokens_total" in text
    assert "tritonlive_event_loop_lag_seconds_bucket" in text
    assert 0 <= metric("tritonlive_event_loop_lag_max_seconds") < 60
    assert metric("tritonlive_response_queue_length") >= 0
    assert metric("tritonlive_channel_messages_total") <= metric("tritonlive_channel_steps_total")
    assert frontend.get("/v1/models").json()["data"][0]["id"] == MODEL


async def test_an_abort_on_request_answers_with_all_that_was_generated(stack: Stack, async_openai: AsyncOpenAI) -> None:
    """The model holds a long answer that is not streamed until it is complete."""
    async with async_openai, httpx.AsyncClient(base_url=stack.frontend_url, timeout=60) as http:
        answer = asyncio.create_task(
            async_openai.completions.create(
                model=MODEL,
                prompt="x",
                max_tokens=1900,
                extra_body={"ignore_eos": True, "return_token_ids": True},
            )
        )
        await asyncio.sleep(2)
        (await http.post("/abort_requests", json={}, headers=bearer(stack.control_key))).raise_for_status()
        (choice,) = (await asyncio.wait_for(answer, 30)).choices
    assert choice.finish_reason == "abort"
    assert len(choice.model_dump()["token_ids"]) > 50
