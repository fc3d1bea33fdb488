"""The bridge's process beside a front end. The processes are real; a script stands in for the bridge."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openai_frontend.rust import port as module
from openai_frontend.rust.exit_status import CANNOT_SERVE
from openai_frontend.rust.port import RustAddress, RustPort
from tritonlive import backoff

TIMEOUT_S = 20


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def started(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RustPort]:
    """Makes a port whose process runs a program."""
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)

    def make(program: str) -> RustPort:
        made = RustPort(RustAddress("127.0.0.1", 1, tmp_path), 1, said.append)
        made._bootstrap_command = ["echo", "told"]
        made._command = [sys.executable, "-c", f"import sys; assert sys.stdin.read() == 'told\\n'; {program}"]
        return made

    return make


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_process_is_started_again(started: Any, said: list[str], tmp_path: Path) -> None:
    program = f"import os, time; open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    with started(program) as port:
        for number in range(1, 3):
            wait_until(lambda number=number: len(pids(tmp_path)) == number)
            os.kill(pids(tmp_path)[-1], signal.SIGKILL)
        wait_until(lambda: len(pids(tmp_path)) == 3)
    assert said == ["the Rust port's process ended with status -9"] * 2
    assert not port.has_failed
    with pytest.raises(ProcessLookupError):
        os.kill(pids(tmp_path)[-1], 0)


def pids(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_one_that_cannot_serve_stops_the_front_end(
    started: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with started(f"raise SystemExit({CANNOT_SERVE})") as port:
            wait_until(lambda: heard)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert port.has_failed
    assert said[-1] == "the Rust port cannot serve, so this front end stops"


def test_after_it_has_served_nothing_stops_the_front_end(
    started: Any, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STABLE_S", 0.3)
    program = (
        f"import os, time; open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n'); "
        f"n = len(open({str(tmp_path / 'pids')!r}).readlines()); "
        f"time.sleep(0.5 if n == 1 else 0); raise SystemExit({CANNOT_SERVE})"
    )
    with started(program) as port:
        wait_until(lambda: len(pids(tmp_path)) == 8)
    assert said[:7] == [f"the Rust port's process ended with status {CANNOT_SERVE}"] * 7
    assert not port.has_failed


def test_arguments_that_vllm_does_not_take_stop_the_front_end(started: Any, said: list[str]) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        made = started("raise AssertionError")
        made._bootstrap_command = ["false"]
        with made as port:
            wait_until(lambda: heard)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (port.has_failed, len(said)) == (True, 1)
