"""openai_frontend/guards/anthropic_errors.py: every error of Anthropic's routes in Anthropic's form."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from openai_frontend.guards.anthropic_errors import PATHS, AnthropicErrors, converted

OPENAI = {"error": {"message": "no", "type": "Bad Request", "param": "x", "code": 400}}


def ask(path: str, response: Response) -> Any:
    async def answer(_: Request) -> Response:
        return response

    return TestClient(AnthropicErrors(Starlette(routes=[Route(path, answer, methods=["POST"])]))).post(path)


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "timeout_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_an_error_of_openais_form_gets_anthropics(path: str, status: int, kind: str) -> None:
    response = ask(path, JSONResponse(OPENAI, status, {"retry-after": "3", "x-request-id": "r"}))
    assert response.status_code == status
    assert response.headers["retry-after"] == "3"
    assert response.json() == {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "r"}


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (JSONResponse({"type": "error", "error": {"type": "BadRequestError", "message": "bad"}}, 400), "bad"),
        (JSONResponse({"detail": "Method Not Allowed"}, 405), "Method Not Allowed"),
        (PlainTextResponse("Invalid HTTP request received.", 400), "Invalid HTTP request received."),
        (Response(status_code=404), "Not Found"),
        (StreamingResponse(iter(['{"error":', '{"message":"in parts"}}']), 500), "in parts"),
    ],
)
def test_other_forms_are_understood(response: Response, message: str) -> None:
    assert ask("/v1/messages", response).json()["error"]["message"] == message


def test_answers_and_other_routes_pass_as_they_are() -> None:
    assert ask("/v1/messages", JSONResponse(OPENAI)).json() == OPENAI
    assert ask("/v1/chat/completions", JSONResponse(OPENAI, 400)).json() == OPENAI


@pytest.mark.parametrize(("code", "kind"), [(500, "api_error"), (400, "invalid_request_error")])
def test_an_error_within_a_stream_ends_it_with_its_message(code: int, kind: str) -> None:
    async def chunks() -> AsyncGenerator[str, None]:
        yield "data: 1\n\n"
        yield f'data: {{"error": {{"message": "broken", "type": "x", "code": {code}}}}}\n\n'
        yield "data: [DONE]\n\n"

    async def convert(each: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        async for chunk in each:
            yield f"converted {chunk}"

    async def run() -> list[str]:
        return [event async for event in converted(chunks(), convert)]

    first, last = asyncio.run(run())
    assert first == "converted data: 1\n\n"
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.removeprefix("event: error\ndata: "))["error"] == {"type": kind, "message": "broken"}
