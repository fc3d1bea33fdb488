"""The small guards of answers: Retry-After, and the notice of a shutdown."""

import asyncio
import logging
from unittest import mock

import pytest
from fastapi import FastAPI
from starlette.responses import Response
from starlette.testclient import TestClient
from vllm.exceptions import VLLMValidationError

from openai_frontend.guards.fan_out import QueueFull
from openai_frontend.guards.refusals_in_log import drop_refusals
from openai_frontend.guards.retry_after import RetryAfter
from openai_frontend.guards.shutdown import REASON, notice_of_shutdown


@pytest.mark.parametrize(("status", "given", "seen"), [(503, None, "5"), (503, "7", "7"), (500, None, None)])
def test_every_503_says_when_to_come_back(status: int, given: str | None, seen: str | None) -> None:
    app = FastAPI()
    headers = {"retry-after": given} if given else None
    app.add_api_route("/", lambda: Response(status_code=status, headers=headers))
    assert TestClient(RetryAfter(app)).get("/").headers.get("retry-after") == seen


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (VLLMValidationError("no"), set()),
        (QueueFull(1, 1), set()),
        (ValueError("tiny is not a multimodal model"), {False}),
        (RuntimeError("bug"), {True}),
    ],
)
def test_a_refusal_is_no_traceback_in_the_log(
    error: Exception, logged: set[bool], caplog: pytest.LogCaptureFixture
) -> None:
    """`logged`: whether a line has a traceback; empty without a line."""
    drop_refusals()
    logger = logging.getLogger("vllm.entrypoints.anthropic.api_router")
    logger.addHandler(caplog.handler)
    try:
        raise error
    except Exception as raised:  # as vLLM does
        logger.exception("Error in create_messages: %s", raised)
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.exc_info is not None for record in caplog.records} == logged


async def test_generations_end_once_before_the_drain_is_over() -> None:
    engine = mock.Mock(spec_set=["end_all"])
    on_shutdown = notice_of_shutdown(engine, 0.2)
    on_shutdown()
    on_shutdown()
    await asyncio.sleep(0.02)
    engine.end_all.assert_not_called()
    await asyncio.sleep(0.15)
    engine.end_all.assert_called_once_with(REASON)
