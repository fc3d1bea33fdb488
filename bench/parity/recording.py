"""Sends every shape to one server, one at a time, and saves the answers in a file for a later comparison."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from bench.parity.shape import Shape
from bench.sse import parse_events

REQUEST_TIMEOUT_S = 120.0
HEADERS_KEPT = ("allow", "retry-after", "www-authenticate")
"""Response headers to compare, in addition to the content type."""

Answer = dict[str, Any]
"""`status`, `content_type`, `headers`, one of `json`, `text`, `events` (a list of `{"name", "data"}`); or `error`."""

Recording = dict[str, Answer]
"""Answers by shape name."""

OnAnswer = Callable[[Shape], None]
"""Called after each answer; shows progress."""


def record(url: str, shapes: Iterable[Shape], on_answer: OnAnswer = lambda shape: None) -> Recording:
    """Record the server's answer to every shape.

    Requests are sent one at a time. Both servers then run the same batches, so numbers can be bitwise equal. A request
    that fails on the wire (timeout, connection cut) is recorded as an error.
    """
    return asyncio.run(_record(url, list(shapes), on_answer))


async def _record(url: str, shapes: list[Shape], on_answer: OnAnswer) -> Recording:
    recording: Recording = {}
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(url, timeout=timeout, auto_decompress=True) as session:
        for shape in shapes:
            started = time.monotonic()
            try:
                recording[shape.name] = await _send(session, shape)
            except (aiohttp.ClientError, TimeoutError) as error:
                recording[shape.name] = {"error": type(error).__name__}
            recording[shape.name]["seconds"] = round(time.monotonic() - started, 3)
            on_answer(shape)
    return recording


async def _send(session: aiohttp.ClientSession, shape: Shape) -> Answer:
    data, headers = _payload(shape)
    async with session.request(shape.method, shape.path, data=data, headers=headers, allow_redirects=False) as response:
        body = await response.text(errors="replace")
        answer: Answer = {
            "status": response.status,
            "content_type": response.headers.get("content-type"),
            "headers": {name: response.headers[name] for name in HEADERS_KEPT if name in response.headers},
        }
        return {**answer, **_parsed(body, response.content_type)}


def _payload(shape: Shape) -> tuple[bytes | None, dict[str, str]]:
    if shape.body is None or isinstance(shape.body, bytes):
        return shape.body, shape.headers
    return json.dumps(shape.body).encode(), {"Content-Type": "application/json", **shape.headers}


def _parsed(body: str, content_type: str) -> dict[str, Any]:
    if content_type == "text/event-stream":
        return {"events": [{"name": event.name, "data": event.value()} for event in parse_events(body)]}
    if content_type == "application/json":
        try:
            return {"json": json.loads(body)}
        except json.JSONDecodeError:
            return {"text": body}
    return {"text": body}


def save(recording: Recording, path: Path) -> None:
    """Write the recording as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recording, indent=1, ensure_ascii=True) + "\n")


def load(path: Path) -> Recording:
    """Read a recording written by `save`."""
    return json.loads(path.read_text())
