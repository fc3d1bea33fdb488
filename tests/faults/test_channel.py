"""Row 34: tritonserver keeps the messages of a request until it ends, so a channel continues on new requests."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from openai_frontend.replicas.replica_channel import RENEW_AFTER_MESSAGES
from tests.stack.conftest import MODEL, bearer, read_metric
from tritonlive.launch import Stack

logger = logging.getLogger(__name__)

NUM_TOKENS = RENEW_AFTER_MESSAGES + 100
# Before: 1.7 KB each, 5 MiB in all.
NUM_MESSAGES, GROWTH_LIMIT_MIB = 3000, 2.5


def generate(stack: Stack, *, stream: bool) -> list[str]:
    """Each token's id, as "token_id:N", of a long greedy answer."""
    body = {
        "model": MODEL,
        "prompt": "Once upon a time",
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "logprobs": 0,
        "return_tokens_as_token_ids": True,
        "stream": stream,
    }
    url, tokens = f"{stack.frontend_url}/v1/completions", []
    with httpx.stream("POST", url, json=body, headers=bearer(stack.api_key), timeout=120) as answer:
        if not stream:
            answer.read()
            return answer.json()["choices"][0]["logprobs"]["tokens"]
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in httpx.Response(200, text=line.removeprefix("data: ")).json()["choices"]:
                    tokens += (choice["logprobs"] or {"tokens": []})["tokens"]
    return tokens


def num_messages(stack: Stack) -> float:
    return read_metric(stack.metrics_url, "tritonlive_channel_messages_total")


@pytest.mark.row(34)
def test_a_stream_longer_than_a_channels_request_loses_and_doubles_no_token(stack: Stack) -> None:
    whole = generate(stack, stream=False)
    assert len(whole) == NUM_TOKENS
    assert generate(stack, stream=True) == whole


@pytest.mark.row(34)
def test_tritonserver_does_not_grow_with_the_messages_of_a_channel(stack: Stack) -> None:
    """It has grown to what it needs: the test above has sent messages of two requests."""
    server, first = psutil.Process(stack.triton.pid), num_messages(stack)
    before, began = server.memory_info().rss, time.monotonic()
    while num_messages(stack) < first + NUM_MESSAGES:
        with ThreadPoolExecutor(4) as clients:
            streams = list(clients.map(lambda _: generate(stack, stream=True), range(4)))
        assert [len(tokens) for tokens in streams] == [NUM_TOKENS] * 4
    grown = (server.memory_info().rss - before) / 2**20
    logger.info("tritonserver grew by %.1f MiB in %.0f s", grown, time.monotonic() - began)
    assert grown < GROWTH_LIMIT_MIB
