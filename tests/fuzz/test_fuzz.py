"""The fuzz itself, against a small server; `python -m tests.fuzz` runs it against a real one."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fuzz import runner
from tests.fuzz.requests import Requests, routes_of

DOCUMENT: dict[str, Any] = {
    "paths": {
        "/v1/completions": {
            "post": {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}}}}
        },
        "/items/{name}": {
            "get": {"parameters": [{"name": "name", "in": "path"}, {"name": "q", "in": "query", "schema": {}}]}
        },
    },
    "components": {
        "schemas": {
            "Ask": {
                "type": "object",
                "required": ["prompt"],
                "properties": {
                    "model": {"type": "string"},
                    "prompt": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
                    "max_tokens": {"type": "integer", "minimum": 1024},
                    "top_p": {"type": "number", "minimum": 5},
                    "nested": {"$ref": "#/components/schemas/Ask"},
                },
            }
        }
    },
}


def test_the_routes_of_a_document() -> None:
    assert [route.name for route in routes_of(DOCUMENT)] == ["POST /v1/completions", "GET /items/{name}"]


def test_a_seed_gives_the_same_requests_and_another_others() -> None:
    first, again, other = (Requests(DOCUMENT, "m", seed) for seed in (1, 1, 2))
    assert [first.make(number) for number in range(200)] == [again.make(number) for number in range(200)]
    assert first.make(7) != other.make(7)


def test_requests_are_of_many_kinds() -> None:
    bodies = [Requests(DOCUMENT, "m", 0).make(number).content or b"" for number in range(2000)]
    usual = [body for body in bodies if body.startswith(b"{") and b'"prompt": "Hello there"' in body]
    assert len(usual) > 800
    for part in (b"\\ud800", b"NaN", b'{"type": "object", "properties": {"type"', str(2**70).encode(), b"\xff\xfe"):
        assert any(part in body for body in bodies), part
    assert any(b'"prompt"' not in body for body in bodies)


def answer(request: httpx.Request) -> httpx.Response:
    """A server with two faults: a 500, and a connection that is closed."""
    if request.url.path == "/openapi.json":
        return httpx.Response(200, json=DOCUMENT)
    if request.url.path == "/v1/models":
        return httpx.Response(200, json={"data": [{"id": "m"}]})
    content = request.content
    if b"\\ud800" in content:
        return httpx.Response(500, json={"error": "surrogates not allowed"})
    if content == b"null":
        raise httpx.RemoteProtocolError("closed")
    return httpx.Response(503 if b"NaN" in content else 200)


async def test_faults_are_found_and_503_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback (most recent call last):\n")
    client = httpx.AsyncClient
    monkeypatch.setattr(
        runner.httpx, "AsyncClient", lambda **options: client(transport=httpx.MockTransport(answer), **options)
    )
    done: list[int] = []

    def progress() -> None:
        done.append(1)
        if len(done) == 1:
            log.write_text(log.read_text() * 2)

    findings = await runner.run(
        "http://test", key=None, seed=0, numbers=range(1500), concurrency=4, logs=[log], progress=progress
    )
    assert len(done) == 1500
    assert findings.tracebacks == 1
    assert findings.statuses["POST /v1/completions", "503"] > 0
    assert findings.statuses["POST /v1/completions", "RemoteProtocolError"] > 0
    assert {fault.partition(": 500 ")[2] for fault in findings.faults if ": 500 " in fault} == {
        json.dumps({"error": "surrogates not allowed"}, separators=(",", ":"))
    }
    assert not findings.is_clean
