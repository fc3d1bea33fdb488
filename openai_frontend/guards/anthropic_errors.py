"""Anthropic's form for every error of /v1/messages and /v1/messages/count_tokens.

vLLM 0.32 uses it for the errors of its handler alone, with OpenAI's names of kinds (`translate_error_response` in
vllm.entrypoints.anthropic.api_router). Errors of keys, of validation and of models come in OpenAI's form, and an
error within a stream is told as one of parsing. No version of vLLM without these faults yet.
"""

import json
from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Other statuses are `invalid_request_error` below 500, and `api_error` from there."""


class AnthropicErrors:
    """Rewrites the body of an error; passes everything else through as it comes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in PATHS:
            send = ErrorRewriter(send).send
        await self.app(scope, receive, send)


class ErrorRewriter:
    """The `send` of one request. It holds the start and the body of an error until the body is complete."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
            self._start = message
            return
        if self._start is None or message["type"] != "http.response.body":
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        status = self._start["status"]
        identifier = Headers(raw=self._start["headers"]).get("x-request-id")
        body = json.dumps(error(status, reason_in(self._body, status), identifier)).encode()
        headers = MutableHeaders(scope=self._start)
        headers["content-type"], headers["content-length"] = "application/json", str(len(body))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


def error(status: int, message: str, identifier: str | None = None) -> dict[str, Any]:
    """An error as Anthropic's SDK reads it."""
    fallback = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
    return {
        "type": "error",
        "error": {"type": KINDS.get(status, fallback), "message": message},
        "request_id": identifier,
    }


def reason_in(body: bytes, status: int) -> str:
    """The message of an error in OpenAI's, Anthropic's or FastAPI's form, or of plain text."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return body.decode(errors="replace") or HTTPStatus(status).phrase
    if isinstance(parsed, dict):
        inner = parsed.get("error", parsed)
        if isinstance(inner, dict) and (found := inner.get("message") or inner.get("detail")):
            return str(found)
    return HTTPStatus(status).phrase


async def converted(
    chunks: AsyncGenerator[str, None], convert: Callable[[AsyncGenerator[str, None]], AsyncGenerator[str, None]]
) -> AsyncGenerator[str, None]:
    """Anthropic's events made of the chat's by `convert`, vLLM's. An error among them ends the stream."""
    failure: list[dict[str, Any]] = []

    async def until_error() -> AsyncGenerator[str, None]:
        try:
            async for chunk in chunks:
                if chunk.startswith('data: {"error"'):
                    failure.append(json.loads(chunk.removeprefix("data: "))["error"])
                    return
                yield chunk
        finally:
            await chunks.aclose()

    events = convert(until_error())
    try:
        async for event in events:
            yield event
    finally:
        await events.aclose()
    for each in failure:
        yield f"event: error\ndata: {json.dumps(error(each['code'], each['message']))}\n\n"
