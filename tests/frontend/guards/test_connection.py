"""openai_frontend/guards/connection.py, in a real uvicorn."""

import asyncio
import contextlib
from typing import Any

import pytest

from openai_frontend.guards.connection import ON_SHUTDOWN
from openai_frontend.guards.limits import Limits
from tests.frontend.guards.real_uvicorn import serving

LIMITS = Limits(max_header_size=2000, receive_timeout_s=0.3)
ANSWER_S = 10.0


class App:
    """Answers with the size of the body; counts the calls of the notice of a shutdown."""

    def __init__(self) -> None:
        self.num_notices = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"][ON_SHUTDOWN] = self.notice
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"size={size}".encode()})

    def notice(self) -> None:
        self.num_notices += 1


async def exchange(port: int, *parts: bytes) -> bytes:
    """All that the server sends until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
    answer = await asyncio.wait_for(reader.read(), ANSWER_S)
    writer.close()
    return answer


END = b"connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "begin"),
    [
        ((b"GET / HTTP/1.1\r\nx: " + b"a" * 1900 + b"\r\n" + END,), b"HTTP/1.1 200"),
        ((b"GET / HTTP/1.1\r\nx: " + b"a" * 2100 + b"\r\n" + END,), b"HTTP/1.1 431"),
        ((b"GET /" + b"a" * 2100 + b" HTTP/1.1\r\n" + END,), b"HTTP/1.1 431"),
        ((b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 500 + END,), b"HTTP/1.1 431"),
        ((b"GET / HTTP/1.1\r\nx: ", *[b"a" * 500] * 5), b"HTTP/1.1 431"),
        ((b"POST / HTTP/1.1\r\ncontent-length: 6000\r\n" + END, b"a" * 3000, b"a" * 3000), b"HTTP/1.1 200"),
        ((b"POST / HTTP/1.1\r\ncontent-length: -5\r\n" + END,), b"HTTP/1.1 400"),
    ],
)
async def test_headers_are_limited_and_bodies_are_not(parts: tuple[bytes, ...], begin: bytes) -> None:
    async with serving(App(), LIMITS) as port:
        answer = await exchange(port, *parts)
    assert answer.startswith(begin), answer[:200]
    if begin.endswith(b"431"):
        assert b"--max-header-size" in answer


async def test_a_second_request_on_the_connection_is_limited_too() -> None:
    first = b"POST / HTTP/1.1\r\ncontent-length: 3000\r\n\r\n" + b"a" * 3000
    async with serving(App(), LIMITS) as port:
        answer = await exchange(port, first, b"GET / HTTP/1.1\r\nx: " + b"a" * 2100 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"size=3000" in answer
    assert b"HTTP/1.1 431" in answer


@pytest.mark.parametrize("begin", [b"", b"GE", b"GET / HTTP/1.1\r\nx: a"])
async def test_a_request_whose_headers_do_not_arrive_is_closed(begin: bytes) -> None:
    async with serving(App(), LIMITS) as port:
        assert await exchange(port, begin) == b""


async def test_the_shutdown_is_announced_to_the_app() -> None:
    app = App()
    async with serving(app, LIMITS) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.1)
    assert app.num_notices == 1
    writer.close()
