"""Idle clients and slow readers do not harm other clients."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from urllib.parse import urlsplit

import psutil
import pytest
from openai import AsyncOpenAI, OpenAI

from tritonlive.launch import Stack

from .conftest import MODEL, wait_until

IDLE = 1000
SLOW = 16
# A stream whose client does not read fills the socket's buffers. The server must not buffer the whole text beyond them.
GROWTH_MIB = 150


def connect(stack: Stack) -> socket.socket:
    url = urlsplit(stack.frontend_url)
    return socket.create_connection((url.hostname, url.port), timeout=30)


def ask_and_do_not_read(stack: Stack) -> socket.socket:
    asked = {"model": MODEL, "prompt": "Hello", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    body = json.dumps(asked | {"logprobs": 5, "return_token_ids": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.api_key}\r\n"
    client = connect(stack)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    return client


@contextmanager
def crowd(stack: Stack) -> Iterator[None]:
    with ExitStack() as clients:
        for _ in range(IDLE):
            clients.enter_context(closing(connect(stack)))
        for _ in range(SLOW):
            clients.enter_context(closing(ask_and_do_not_read(stack)))
        yield


@pytest.mark.row(17, 53)
async def test_idle_connections_and_slow_readers_harm_nobody(
    stack: Stack, async_openai: AsyncOpenAI, openai: OpenAI, metric: Callable[[str], float]
) -> None:
    frontend = psutil.Process(stack.frontend.pid)
    before = frontend.memory_info().rss
    alone = openai.completions.create(model=MODEL, prompt="Hello", max_tokens=16, temperature=0)
    with crowd(stack):
        async with async_openai:
            asked = [
                async_openai.completions.create(model=MODEL, prompt="Hello", max_tokens=16, temperature=0)
                for _ in range(64)
            ]
            answers = await asyncio.gather(*asked)
        assert {answer.choices[0].text for answer in answers} == {alone.choices[0].text}
        assert frontend.memory_info().rss - before < GROWTH_MIB * 2**20
    wait_until(lambda: metric("vllm:num_requests_running") == 0, 60)
