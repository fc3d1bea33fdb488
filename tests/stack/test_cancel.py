"""A client that goes away frees the engine."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import API_KEY
from tritonlive.launch import Stack

from .conftest import MODEL, wait_until

# Generous: the promise is one second, a busy machine may need more.
FREED_WITHIN_S = 15.0
CLIENT = """
import asyncio, httpx, sys
url, body, key, streams = sys.argv[1:]
headers = {"Authorization": key, "Content-Type": "application/json"}
limits = httpx.Limits(max_connections=None)
async def read(client):
    async with client.stream("POST", url, content=body, headers=headers, timeout=300) as answer:
        async for _ in answer.aiter_lines():
            pass
async def main():
    async with httpx.AsyncClient(limits=limits) as client:
        await asyncio.gather(*(read(client) for _ in range(int(streams))))
asyncio.run(main())
"""
# Long enough to be caught running: the tiny model makes thousands of tokens a second.
OPENAI = f'{{"model": "{MODEL}", "prompt": "Hello", "max_tokens": 1900, "n": 64, "ignore_eos": true, "stream": %s}}'
ONE_OF_MANY = OPENAI.replace('"n": 64', '"n": 1')
PARAMETERS = json.dumps({"max_tokens": 1900, "n": 64, "ignore_eos": True})
NATIVE = json.dumps({"text_input": "Hello", "stream": True, "sampling_parameters": PARAMETERS, "api_key": API_KEY})


@pytest.mark.parametrize(
    ("where", "path", "body", "streams"),
    [
        ("frontend_url", "/v1/completions", OPENAI % "true", 1),
        ("frontend_url", "/v1/completions", OPENAI % "false", 1),
        ("frontend_url", "/v1/completions", ONE_OF_MANY % "true", 128),
        ("http_url", "/v2/models/llm/generate_stream", NATIVE, 1),
    ],
    ids=["openai stream", "openai whole", "128 openai streams", "triton stream"],
)
def test_a_killed_client_frees_the_engine(
    stack: Stack, metric: Callable[[str], float], where: str, path: str, body: str, streams: int
) -> None:
    url = getattr(stack, where) + path
    command = [sys.executable, "-c", CLIENT, url, body, f"Bearer {stack.api_key}", str(streams)]
    with subprocess.Popen(command) as client:
        try:
            wait_until(lambda: metric("vllm:num_requests_running") > 0, 60)
        finally:
            client.kill()
    wait_until(lambda: metric("vllm:num_requests_running") == metric("vllm:kv_cache_usage_perc") == 0, FREED_WITHIN_S)
