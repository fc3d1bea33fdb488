"""openai_frontend/guards/body.py, around a route of a real app."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from openai_frontend.guards.anthropic_errors import AnthropicErrors
from openai_frontend.guards.body import BodyGuard, guard_bodies
from openai_frontend.guards.limits import Limits

LIMITS = Limits(max_body_size=1000, receive_timeout_s=0.05)


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()

    @app.post("/v1/completions")
    @app.post("/v1/messages")
    @app.post("/upload")
    async def echo(request: Request) -> dict[str, Any]:
        return {"size": len(await request.body())}

    guard_bodies(app, LIMITS, {"/upload"})
    with TestClient(AnthropicErrors(app)) as client:
        yield client


def test_a_body_within_the_limit_reaches_the_route_whole(client: TestClient) -> None:
    body = json.dumps({"a": "x" * 900})
    assert client.post("/v1/completions", content=body).json() == {"size": len(body)}
    assert client.post("/v1/completions", content=(part.encode() for part in body)).json() == {"size": len(body)}


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_larger_body_is_refused_and_the_connection_closed(client: TestClient, *, is_announced: bool) -> None:
    body = b" " * 1001
    answer = client.post("/v1/completions", content=body if is_announced else iter([body[:500], body[500:]]))
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert "--max-body-size" in answer.json()["error"]["message"]
    assert client.post("/upload", content=body).json() == {"size": 1001}


def test_the_field_at_fault_is_named(client: TestClient) -> None:
    answer = client.post("/v1/completions", content=rb'{"stop":["\ud83e"]}')
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, 400, "stop.0")
    assert error["message"].startswith("stop.0: ")


def test_anthropics_routes_get_anthropics_errors(client: TestClient) -> None:
    answer = client.post("/v1/messages", content=b'{"top_k":1e999}')
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"] == {"type": "invalid_request_error", "message": "top_k: is not a finite number"}


async def test_a_body_that_stops_arriving_is_given_up() -> None:
    sent: list[Any] = []

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    guard = BodyGuard(never, LIMITS)
    await guard({"type": "http", "method": "POST", "path": "/", "headers": []}, never, send)
    assert sent[0]["status"] == 408
    assert b"--receive-timeout" in sent[1]["body"]
