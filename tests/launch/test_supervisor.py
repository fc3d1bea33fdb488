"""tritonlive/launch/supervisor.py with real processes in the place of tritonserver and of the front end."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tritonlive import backoff
from tritonlive.cli import foreground
from tritonlive.launch import ProcessDiedError, Stack, StackConfig, supervisor
from tritonlive.launch.supervisor import MAX_RESTARTS, Supervisor
from tritonlive.wire.machine import STUB_NAME, UNBATCHED_NAME

TRITON = """
import os, subprocess, sys, time
print("run of", os.getpid(), flush=True)
subprocess.Popen([sys.argv[1], "300"])
time.sleep(300)
"""


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A running stack: a tritonserver with a model's process, and a front end that answers /health."""
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.05)
    stub, pages = tmp_path / STUB_NAME, tmp_path / "pages"
    shutil.copy(shutil.which("sleep") or "", stub)
    pages.mkdir()
    (pages / "health").touch()
    running = Stack(StackConfig(model=str(tmp_path), cache_dir=tmp_path, tritonserver=Path(sys.executable)))
    running.triton.command = [sys.executable, "-c", TRITON, str(stub)]
    port = str(running.config.port)
    running.frontend.command = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "-d", str(pages)]
    running.start()
    until(lambda: len(running.triton.members()) == 2)
    until(lambda: running.frontend.is_running)
    yield running
    running.kill()


def until(is_over: Callable[[], object], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_over():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def watch(running: Stack, is_over: Callable[[list[str]], bool]) -> list[str]:
    """Have a supervisor look until its lines are as wanted. Returns them."""
    lines: list[str] = []
    with closing(Supervisor(running, lines.append)) as watcher:
        yield_to(watcher, lines, is_over)
    return lines


def yield_to(watcher: Supervisor, lines: list[str], is_over: Callable[[list[str]], bool]) -> None:
    def looked() -> bool:
        watcher.look()
        return is_over(lines)

    until(looked)


def kill_model(running: Stack) -> int:
    (model,) = [process for process in running.triton.members() if process.name() == STUB_NAME]
    model.kill()
    return model.pid


@pytest.mark.parametrize("name", ["triton", "frontend"])
def test_a_process_that_was_killed_is_started_again_and_the_other_runs_on(running: Stack, name: str) -> None:
    killed, other = (running.triton, running.frontend) if name == "triton" else (running.frontend, running.triton)
    lines: list[str] = []
    with closing(Supervisor(running, lines.append)) as watcher:
        watcher.look()
        assert lines == []
        before, others = killed.pid, other.pid
        os.kill(before, signal.SIGKILL)
        until(lambda: not killed.is_running)
        yield_to(watcher, lines, lambda lines: len(lines) == 2)
    assert lines[0] == f"{killed.name} ended (killed by SIGKILL); starting {killed.name} again (1 of {MAX_RESTARTS})"
    assert lines[1].startswith("serving again after ")
    assert killed.pid != before
    assert (killed.is_running, other.pid) == (True, others)


def test_the_log_of_the_process_that_failed_is_kept(running: Stack) -> None:
    before = running.triton.pid
    os.kill(before, signal.SIGKILL)
    until(lambda: not running.triton.is_running)
    watch(running, lambda lines: len(lines) == 2)
    assert f"run of {before}" in running.triton_log.with_name("tritonserver.previous.log").read_text()
    until(lambda: f"run of {running.triton.pid}" in running.triton_log.read_text())


def test_triton_is_started_again_when_its_models_process_has_ended(running: Stack) -> None:
    """Triton itself stays up then, and says that it is ready."""
    lines: list[str] = []
    with closing(Supervisor(running, lines.append)) as watcher:
        before, stub = running.triton.pid, kill_model(running)
        yield_to(watcher, lines, lambda lines: len(lines) == 2)
        assert lines[0].startswith(f"the model's process in tritonserver ({stub}) ended; starting tritonserver again")
        assert running.triton.pid != before
        until(lambda: len(running.triton.members()) == 2)
        running.find_model_process()
        kill_model(running)
        yield_to(watcher, lines, lambda lines: len(lines) == 4)
        assert f"(2 of {MAX_RESTARTS})" in lines[2]


def test_the_end_of_a_model_without_an_engine_is_said_once_and_nothing_is_restarted(
    running: Stack, tmp_path: Path
) -> None:
    """A restart would cost everybody's requests, and the pushed weights."""
    model = tmp_path / "repository" / "vllm_model" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import time\ntime.sleep(300)\n")
    unbatched = tmp_path / UNBATCHED_NAME
    unbatched.symlink_to(sys.executable)
    running.kill()
    start = f"subprocess.Popen([{str(unbatched)!r}, {str(model)!r}])"
    running.triton.command[2] = TRITON.replace("\ntime.sleep", f"\n{start}\ntime.sleep")
    running.start()
    until(lambda: len(running.triton.members()) == 3)
    lines: list[str] = []
    with closing(Supervisor(running, lines.append)) as watcher:
        before = running.triton.pid
        (process,) = [each for each in running.triton.members() if each.name() == UNBATCHED_NAME]
        process.kill()
        yield_to(watcher, lines, lambda lines: len(lines) == 1)
        for _ in range(5):
            watcher.look()
        assert len(lines) == 1
        assert lines[0].startswith(f"the process of vllm_model in tritonserver ({process.pid}) ended: ")
        assert running.triton.pid == before
        running.find_model_process()
        running.triton.kill()  # with all its processes, which is one failure
        yield_to(watcher, lines, lambda lines: len(lines) == 3)
        assert lines[1].startswith("tritonserver ended ")


def test_a_start_that_fails_at_once_does_not_loop(running: Stack) -> None:
    running.triton.command = [sys.executable, "-c", "raise SystemExit('no such device')"]
    os.kill(running.triton.pid, signal.SIGKILL)
    lines: list[str] = []
    with closing(Supervisor(running, lines.append)) as watcher, pytest.raises(ProcessDiedError) as raised:
        yield_to(watcher, lines, lambda lines: False)
    assert f"gave up after {MAX_RESTARTS} restarts in a row: tritonserver ended (exit status 1)" in str(raised.value)
    assert "no such device" in str(raised.value)
    assert len([line for line in lines if "again (" in line]) == MAX_RESTARTS


def test_restarts_are_counted_anew_after_a_stable_time(running: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STABLE_S", 0.0)
    lines: list[str] = []
    with closing(Supervisor(running, lines.append)) as watcher:
        for number in (2, 4):
            os.kill(running.frontend.pid, signal.SIGKILL)
            until(lambda: not running.frontend.is_running)
            yield_to(watcher, lines, lambda lines, number=number: len(lines) == number)
    assert [f"(1 of {MAX_RESTARTS})" in line for line in lines] == [True, False, True, False]


def test_without_restarts_the_models_end_ends_the_watch(running: Stack) -> None:
    running.config = replace(running.config, restart=False)
    timer = threading.Timer(0.5, kill_model, [running])
    timer.start()
    with pytest.raises(ProcessDiedError, match="the model's process in tritonserver"):
        foreground.watch(running, threading.Event(), Console())
    timer.join()


def test_a_stop_is_heard_while_a_restart_is_under_way(running: Stack) -> None:
    running.frontend.command = [sys.executable, "-c", "import time; time.sleep(300)"]  # never healthy
    stop = threading.Event()
    os.kill(running.frontend.pid, signal.SIGKILL)
    timer = threading.Timer(1.5, stop.set)
    timer.start()
    foreground.watch(running, stop, Console())
    assert running.frontend.is_running
    running.stop()
    assert running.triton.members() + running.frontend.members() == []
