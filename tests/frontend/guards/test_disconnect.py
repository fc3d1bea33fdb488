"""openai_frontend/guards/disconnect.py, in a real uvicorn with real clients that leave."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from openai_frontend.guards.admission import AdmissionMiddleware
from openai_frontend.guards.disconnect import ON_LOST, DisconnectMiddleware
from openai_frontend.guards.limits import DEFAULTS
from tests.frontend.guards.real_uvicorn import serving

WAIT_S = 10.0


class Routes:
    """What the routes have seen of their clients."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()
        self.finished = asyncio.Event()
        self.spec_versions: list[str] = []

    async def stream(self, request: Request) -> Response:
        """An event, then silence."""
        self.spec_versions.append(request.scope["asgi"]["spec_version"])
        return StreamingResponse(self._silent(), media_type="text/event-stream")

    async def slow(self, request: Request) -> Response:
        """Begins its stream only when it is told to."""
        self.began.set()
        await self.go_on.wait()
        return StreamingResponse(self._silent(), media_type="text/event-stream")

    async def plain(self, request: Request) -> Response:
        """Works on after its answer."""
        return JSONResponse({}, background=BackgroundTask(self._later))

    async def _silent(self) -> AsyncIterator[str]:
        try:
            yield "data: 1\n\n"
            self.began.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _later(self) -> None:
        self.began.set()
        await self.go_on.wait()
        self.finished.set()


def app_of(routes: Routes) -> DisconnectMiddleware:
    return DisconnectMiddleware(
        Starlette(routes=[Route(f"/{name}", getattr(routes, name)) for name in ("stream", "slow", "plain")])
    )


async def ask(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /{path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return reader, writer


async def within(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), WAIT_S)


async def test_a_silent_stream_ends_with_its_client_and_nothing_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "error", lambda *args, **kwargs: said.append(str(args)))
    routes = Routes()
    async with serving(app_of(routes), DEFAULTS) as port:
        reader, writer = await ask(port, "stream")
        await reader.readuntil(b"data: 1\n\n")
        await within(routes.began)
        writer.close()
        await within(routes.cancelled)
    assert routes.spec_versions == ["2.4"]  # Starlette runs no task of its own
    assert said == []


async def test_a_stream_whose_start_is_held_for_its_first_token_ends_with_its_client() -> None:
    async def answer(request: Request, error: Exception) -> Response:
        raise AssertionError("nothing is refused")

    routes = Routes()
    async with serving(AdmissionMiddleware(app_of(routes), answer), DEFAULTS) as port:
        _, writer = await ask(port, "stream")
        await within(routes.began)
        writer.close()
        await within(routes.cancelled)


async def test_a_stream_whose_client_left_before_it_began_ends_at_once() -> None:
    routes = Routes()
    async with serving(app_of(routes), DEFAULTS) as port:
        _, writer = await ask(port, "slow")
        await within(routes.began)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.1)  # the server has read the end of the connection
        assert not routes.cancelled.is_set()
        routes.go_on.set()
        await within(routes.cancelled)


async def test_what_is_done_after_an_answer_is_not_cancelled() -> None:
    routes = Routes()
    async with serving(app_of(routes), DEFAULTS) as port:
        reader, writer = await ask(port, "plain")
        await reader.readuntil(b"{}")
        await within(routes.began)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.1)
        routes.go_on.set()
        await within(routes.finished)


async def test_each_request_of_a_connection_is_watched_by_itself() -> None:
    routes = Routes()
    routes.go_on.set()
    async with serving(app_of(routes), DEFAULTS) as port:
        reader, writer = await ask(port, "plain")
        await reader.readuntil(b"{}")
        await within(routes.finished)
        routes.began.clear()
        writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"data: 1\n\n")
        await within(routes.began)
        writer.close()
        await within(routes.cancelled)


async def test_a_cancellation_of_somebody_else_is_passed_on() -> None:
    async def cancelled(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    scope: Any = {"type": "http", "state": {ON_LOST: lambda on_lost: None}}
    with pytest.raises(asyncio.CancelledError):
        await DisconnectMiddleware(cancelled)(scope, None, None)  # ty: ignore[invalid-argument-type]


async def test_another_server_keeps_its_own_way() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, send))

    scope: Any = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}
    await DisconnectMiddleware(app)(scope, None, "send")  # ty: ignore[invalid-argument-type]
    assert seen == [({"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}, "send")]
