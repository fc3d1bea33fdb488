"""tritonlive/loop_lag.py: a blocked loop is measured."""

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from tritonlive import loop_lag
from tritonlive.loop_lag import LargestLag, lag_histogram, watch_lag

NAME = "tritonlive_event_loop_lag_seconds"


async def test_a_blocked_loop_shows_lag_until_the_window_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "INTERVAL_S", 0.01)
    monkeypatch.setattr(loop_lag, "WINDOW_S", 0.1)
    largest = LargestLag()
    assert largest.max_s == 0
    watching = asyncio.create_task(watch_lag(largest.observe))
    await asyncio.sleep(0)  # it sleeps from here on
    time.sleep(0.5)  # noqa: ASYNC251 - that is the point
    await asyncio.sleep(0.05)
    assert 0.45 <= largest.max_s < 5
    await asyncio.sleep(0.5)
    assert largest.max_s < 0.45
    watching.cancel()


async def test_a_blocked_loop_shows_in_the_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "INTERVAL_S", 0.01)
    registry = CollectorRegistry()
    watching = asyncio.create_task(watch_lag(lag_histogram(registry).observe))
    await asyncio.sleep(0)  # it sleeps from here on
    time.sleep(0.3)  # noqa: ASYNC251 - that is the point
    await asyncio.sleep(0.05)
    watching.cancel()
    total, count = (registry.get_sample_value(f"{NAME}_{what}") for what in ("sum", "count"))
    assert total is not None
    assert count is not None
    assert total >= 0.25
    assert count >= 2, "the blocked time, and what came after it"
    assert registry.get_sample_value(f"{NAME}_bucket", {"le": "0.2"}) == count - 1
