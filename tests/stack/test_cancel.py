"""A client that goes away frees the engine."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from launch import Stack

from .conftest import MODEL, wait_until

# Generous: the promise is one second, a busy machine may need more.
FREED_WITHIN_S = 15.0
CLIENT = """
import httpx, sys
url, body, key = sys.argv[1:]
headers = {"Authorization": key, "Content-Type": "application/json"}
with httpx.stream("POST", url, content=body, headers=headers, timeout=300) as answer:
    for _ in answer.iter_lines():
        pass
"""
# Long enough to be caught running: the tiny model makes thousands of tokens a second.
OPENAI = f'{{"model": "{MODEL}", "prompt": "Hello", "max_tokens": 1900, "n": 64, "ignore_eos": true, "stream": %s}}'
PARAMETERS = json.dumps({"max_tokens": 1900, "n": 64, "ignore_eos": True})
NATIVE = json.dumps({"text_input": "Hello", "stream": True, "sampling_parameters": PARAMETERS})


@pytest.mark.parametrize(
    ("where", "path", "body"),
    [
        ("frontend_url", "/v1/completions", OPENAI % "true"),
        ("frontend_url", "/v1/completions", OPENAI % "false"),
        ("http_url", "/v2/models/llm/generate_stream", NATIVE),
    ],
    ids=["openai stream", "openai whole", "triton stream"],
)
def test_a_killed_client_frees_the_engine(
    stack: Stack, metric: Callable[[str], float], where: str, path: str, body: str
) -> None:
    url = getattr(stack, where) + path
    with subprocess.Popen([sys.executable, "-c", CLIENT, url, body, f"Bearer {stack.api_key}"]) as client:
        try:
            wait_until(lambda: metric("vllm_num_requests_running") > 0, 60)
        finally:
            client.kill()
    wait_until(lambda: metric("vllm_num_requests_running") == metric("vllm_kv_cache_usage") == 0, FREED_WITHIN_S)
