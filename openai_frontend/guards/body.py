"""Reads the body of a request before its route: limited in size and time, and refused if it cannot be passed on.

Starlette has no limit for bodies and waits for ever for the rest of one (github.com/encode/starlette/discussions/1657);
vLLM 0.32 adds none. The guard is inside of the check of keys, so that nobody without a key makes the server read.
"""

import asyncio
from collections.abc import Collection
from http import HTTPStatus

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_frontend.guards.json_text import find_fault
from openai_frontend.guards.limits import Limits
from openai_frontend.guards.refusal import CLOSE, refuse

METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# A longer body is checked in a thread.
SHORT_BODY = 64 * 1024


class BodyGuard:
    """An ASGI app that passes a request with a checked body on to `app`."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in METHODS:
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except TooLarge:
            size = self.limits.max_body_size
            message = f"the body is larger than {size} bytes, the server's --max-body-size"
            await refuse(scope, receive, send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, headers=CLOSE)
            return
        except TimeoutError:
            limit_s = self.limits.receive_timeout_s
            message = f"no more of the body arrived for {limit_s:g} s, the server's --receive-timeout"
            await refuse(scope, receive, send, HTTPStatus.REQUEST_TIMEOUT, message, headers=CLOSE)
            return
        if body is None:
            return  # the client has gone
        short = len(body) <= SHORT_BODY
        fault = find_fault(body) if short else await asyncio.to_thread(find_fault, body)
        if fault is not None:
            field, reason = fault
            message = reason if field is None else f"{field}: {reason}"
            await refuse(scope, receive, send, HTTPStatus.BAD_REQUEST, message, field=field)
            return
        await self.app(scope, replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client disconnects. Raises TooLarge and TimeoutError."""
        limit = self.limits.max_body_size
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise TooLarge
        parts: list[bytes] = []
        size = 0
        while True:
            async with asyncio.timeout(self.limits.receive_timeout_s):
                message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > limit:
                raise TooLarge
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


class TooLarge(Exception):
    """The body is larger than the limit."""


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns `body` first, and later what `receive` returns: the disconnect."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


def guard_bodies(app: FastAPI, limits: Limits, unread_paths: Collection[str]) -> None:
    """Guard every route of the finished app. Call it before `protect`, which checks keys first.

    unread_paths: routes that read a body of their own kind, with a limit of their own.
    """
    for route in app.router.routes:
        if isinstance(route, Route) and route.path not in unread_paths:
            route.app = BodyGuard(route.app, limits)
