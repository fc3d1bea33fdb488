"""The command line reports failed loads, and measures all others."""

from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import measure_model
from bench.goals import Goal
from bench.measure import Effort
from bench.plan import PlannedLoad
from bench.systems import Settings
from sync import SyncError
from tests.bench.stand_ins import FixedLoad


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.SETTLE_S", 0.0)


@pytest.mark.parametrize("error", [RuntimeError("no engine"), SyncError("no engine")])
def test_a_load_that_fails_ends_no_other(error: Exception, capsys: pytest.CaptureFixture[str]):
    goals = (Goal("seconds", "lower", 1.0),)
    loads: list[PlannedLoad] = [FixedLoad("broken", goals, error), FixedLoad("whole", goals, None)]
    settings = Settings(Path("m"))
    report = measure_model("tiny", ("tritonlive", "vllm"), settings, loads, Effort(1, 1, 0.0))
    assert report.failures == {"broken": "no engine"}
    assert [row.name for row in report.rows] == ["whole"]
    assert not report.is_ok
    assert "broken: FAILED: no engine" in capsys.readouterr().out


def test_what_is_ok_is_ok():
    loads: list[Any] = [FixedLoad("whole", (Goal("seconds", "lower", 1.0),), None)]
    assert measure_model("tiny", ("a", "b"), Settings(Path("m")), loads, Effort(1, 1, 0.0)).is_ok


def test_an_interruption_loses_no_row(capsys: pytest.CaptureFixture[str]):
    goals = (Goal("seconds", "lower", 1.0),)
    loads: list[Any] = [FixedLoad("whole", goals, None), FixedLoad("endless", goals, KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        measure_model("tiny", ("a", "b"), Settings(Path("m")), loads, Effort(1, 1, 0.0))
    table = capsys.readouterr().out.partition("medians, ours / theirs")[2]
    assert "whole" in table
