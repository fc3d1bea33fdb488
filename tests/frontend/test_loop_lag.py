"""openai_frontend/loop_lag.py: a loop that is held up shows it."""

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from openai_frontend import loop_lag
from openai_frontend.loop_lag import LoopLag

NAME = "tritonlive_event_loop_lag_seconds"


async def test_a_blocked_loop_shows_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "INTERVAL_S", 0.01)
    registry = CollectorRegistry()
    watching = asyncio.create_task(LoopLag(registry).watch())
    await asyncio.sleep(0)  # it sleeps from here on
    time.sleep(0.3)  # noqa: ASYNC251 - that is the point
    await asyncio.sleep(0.05)
    watching.cancel()
    total, count = (registry.get_sample_value(f"{NAME}_{what}") for what in ("sum", "count"))
    assert total is not None
    assert count is not None
    assert total >= 0.25
    assert count >= 2, "the blocked time, and what came after it"
    short = registry.get_sample_value(f"{NAME}_bucket", {"le": "0.2"})
    assert short is not None
    assert short < count, "the blocked time is none of these"
