"""tritonlive/backend/loop_lag.py: a loop that is held up shows it, for a while."""

import asyncio
import time

import pytest

from tritonlive.backend import loop_lag


async def test_a_blocked_loop_shows_lag_until_the_window_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "INTERVAL_S", 0.01)
    monkeypatch.setattr(loop_lag, "WINDOW_S", 0.1)
    lag = loop_lag.LoopLag()
    assert lag.max_s == 0
    watching = asyncio.create_task(lag.watch())
    await asyncio.sleep(0)  # it sleeps from here on
    time.sleep(0.5)  # noqa: ASYNC251 - that is the point
    await asyncio.sleep(0.05)
    assert 0.45 <= lag.max_s < 5
    await asyncio.sleep(0.5)
    assert lag.max_s < 0.45
    watching.cancel()
