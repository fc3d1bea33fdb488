"""Streams that are refused before their first token, over an app that the test drives."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from vllm.sampling_params import RequestOutputKind

from openai_frontend.guards import admission
from openai_frontend.guards.admission import MAX_HELD, AdmissionMiddleware
from openai_frontend.vllm_seam import RequestOutputCollector


class Refused(Exception):
    """The engine refused the request."""


async def answer_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error), "path": request.url.path}, 400)


class Setting:
    """An app with one stream. `before` are events before the engine is asked; `engine` acts as the engine."""

    def __init__(self) -> None:
        self.queue: Any = RequestOutputCollector(RequestOutputKind.DELTA, "r")
        self.before: list[str] = []
        self.engine: Callable[[], None] = lambda: None
        self.app = app = FastAPI()
        app.post("/stream")(self.stream)
        app.post("/whole")(self.whole)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(AdmissionMiddleware(app, answer_error)), base_url="http://test"
        )

    async def whole(self) -> Response:
        return JSONResponse({"text": "whole"})

    async def stream(self) -> Response:
        return StreamingResponse(self.events(), media_type="text/event-stream")

    async def events(self) -> Any:
        for event in self.before:
            yield event
        found = admission.current.get()
        assert found is not None
        found.watch(self.queue)
        self.engine()
        try:
            for _ in range(2):
                yield f"data: {await self.queue.get()}\n\n"
        except Refused as error:
            yield f"data: error {error}\n\n"


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_a_refused_stream_is_answered_with_the_errors_status(setting: Setting) -> None:
    setting.before = ["data: created\n\n"]
    setting.engine = lambda: setting.queue.put(Refused("no such grammar"))
    answer = await setting.client.post("/stream")
    assert answer.status_code == 400
    assert answer.json() == {"error": "no such grammar", "path": "/stream"}
    assert answer.headers["content-type"] == "application/json"


async def test_a_stream_that_is_answered_keeps_all_its_events_in_order(setting: Setting) -> None:
    setting.before = ["data: created\n\n"]

    def engine() -> None:
        setting.queue.put("first")
        asyncio.get_running_loop().call_later(0.01, setting.queue.put, "second")

    setting.engine = engine
    answer = await setting.client.post("/stream")
    assert answer.status_code == 200
    assert answer.text == "data: created\n\ndata: first\n\ndata: second\n\n"


async def test_an_error_after_the_first_token_stays_an_event(setting: Setting) -> None:
    def engine() -> None:
        setting.queue.put("first")
        asyncio.get_running_loop().call_later(0.01, setting.queue.put, Refused("too late"))

    setting.engine = engine
    answer = await setting.client.post("/stream")
    assert answer.status_code == 200
    assert answer.text == "data: first\n\ndata: error too late\n\n"


async def test_an_error_that_comes_before_the_queue_is_watched_counts(setting: Setting) -> None:
    setting.queue.put(Refused("no replica"))
    assert (await setting.client.post("/stream")).json()["error"] == "no replica"


async def test_a_first_result_that_comes_before_the_queue_is_watched_counts(setting: Setting) -> None:
    setting.queue.put("first")

    def engine() -> None:
        asyncio.get_running_loop().call_later(0.01, setting.queue.put, Refused("too late"))

    setting.engine = engine
    assert (await setting.client.post("/stream")).text == "data: first\n\ndata: error too late\n\n"


@pytest.mark.parametrize("has_handler", [False, True])
async def test_a_stream_that_raises_is_answered_with_the_errors_status(setting: Setting, has_handler: bool) -> None:
    if has_handler:
        setting.app.exception_handler(ValueError)(answer_error)
    setting.before = ["data: created\n\n"]
    setting.engine = lambda: setting.queue.put(ValueError("no such grammar"))
    answer = await setting.client.post("/stream")
    assert answer.status_code == 400
    assert answer.json()["error"] == "no such grammar"


async def test_a_stream_that_raises_without_a_refusal_is_the_servers_error(setting: Setting) -> None:
    setting.before = ["data: created\n\n"]
    setting.engine = lambda: next(iter(()))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await setting.client.post("/stream")


async def test_a_stream_that_asks_no_engine_is_not_held_for_ever(setting: Setting) -> None:
    setting.before = ["data: event\n\n"] * (MAX_HELD + 5)
    setting.engine = lambda: setting.queue.put(Refused("after many events"))
    answer = await setting.client.post("/stream")
    assert answer.status_code == 200
    assert answer.text.endswith("data: error after many events\n\n")


async def test_a_whole_answer_passes(setting: Setting) -> None:
    assert json.loads((await setting.client.post("/whole")).text) == {"text": "whole"}


def test_later_results_take_the_usual_way(setting: Setting) -> None:
    admission.Admission().watch(setting.queue)
    setting.queue.put(Refused("first"))
    assert "put" not in vars(setting.queue)
