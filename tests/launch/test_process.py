"""The stop, with real processes: fakes with the known bad behaviour of the real ones."""

import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tritonlive.launch import ProcessDiedError
from tritonlive.launch.process import ManagedProcess

# Like tritonserver with vLLM: a child that ignores SIGTERM, its own process group, and a grandchild.
FAMILY = """
    import os, signal, subprocess, sys, time
    def child():
        signal.signal(signal.SIGTERM, signal.SIG_IGN if {stubborn} else signal.SIG_DFL)
        os.setpgid(0, 0)
        subprocess.Popen(["sleep", "300"])
        time.sleep(300)
    if os.fork() == 0:
        child()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    print("up", flush=True)
    time.sleep(300)
"""


def start(tmp_path: Path, code: str) -> ManagedProcess:
    command = [sys.executable, "-u", "-c", textwrap.dedent(code)]
    process = ManagedProcess("stand-in", command, os.environ, tmp_path / "log")
    process.start()
    return process


@pytest.mark.row(37)
def test_what_it_creates_is_its_users_alone(tmp_path: Path) -> None:
    (tmp_path / "log").touch(mode=0o644)
    process = start(tmp_path, f"open({str(tmp_path / 'made')!r}, 'w').close(); print('up')")
    wait_for(lambda: "up" in process.log_tail(1))
    process.stop(5)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("made", "log")] == [0o600, 0o600]


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def family(tmp_path: Path, *, stubborn: bool) -> tuple[ManagedProcess, list[psutil.Process]]:
    process = start(tmp_path, FAMILY.format(stubborn=stubborn))
    wait_for(lambda: len(process.members()) == 3)
    wait_for(lambda: "up" in process.log_tail(1))
    return process, process.members()


def assert_all_gone(members: list[psutil.Process]) -> None:
    assert [m for m in members if m.is_running() and m.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("stubborn", [False, True])
def test_stop_ends_the_whole_session(tmp_path: Path, stubborn: bool) -> None:
    process, members = family(tmp_path, stubborn=stubborn)
    started = time.monotonic()
    process.stop(timeout_s=5)
    assert time.monotonic() - started < 9
    assert_all_gone(members)
    assert not process.is_running


def test_what_a_killed_leader_leaves_behind_is_found(tmp_path: Path) -> None:
    process, members = family(tmp_path, stubborn=True)
    os.kill(process.pid, 9)
    wait_for(lambda: not process.is_running)
    assert len(process.members()) == 2
    with pytest.raises(ProcessDiedError, match="stand-in ended \\(killed by SIGKILL\\)"):
        process.check()
    process.stop(timeout_s=5)
    assert_all_gone(members)


def test_a_leader_that_does_not_stop_is_killed_at_the_deadline(tmp_path: Path) -> None:
    process = start(tmp_path, "import signal,time\nsignal.signal(15, signal.SIG_IGN)\nprint('up')\ntime.sleep(300)")
    wait_for(lambda: "up" in process.log_tail(1))
    started = time.monotonic()
    process.stop(timeout_s=0.5)
    assert 0.5 <= time.monotonic() - started < 5
    assert not process.is_running


def test_a_death_is_reported_with_the_last_lines(tmp_path: Path) -> None:
    process = start(tmp_path, "for n in range(100): print('line', n)\nraise SystemExit(7)")
    wait_for(lambda: not process.is_running)
    with pytest.raises(ProcessDiedError, match=r"exit status 7\)(.|\n)*line 99") as error:
        process.check()
    assert "line 3\n" not in str(error.value)


def test_the_children_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launcher = start(
        tmp_path,
        f"""
        import os, pathlib, time
        from tritonlive.launch.process import ManagedProcess
        child = ManagedProcess("child", ["sleep", "300"], os.environ, pathlib.Path({str(tmp_path / "child")!r}))
        child.start()
        print(child.pid, flush=True)
        time.sleep(300)
        """,
    )
    wait_for(lambda: launcher.log_tail(1).isdigit())
    child = psutil.Process(int(launcher.log_tail(1)))
    os.kill(launcher.pid, 9)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    launcher.kill()
    child.wait(5)


def test_stop_before_start_does_nothing(tmp_path: Path) -> None:
    ManagedProcess("x", ["true"], {}, tmp_path / "log").stop(1)


def test_shared_memory_of_processes_that_ignore_sigterm_is_removed(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        """
        import signal, time
        from multiprocessing.shared_memory import SharedMemory
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        memory = SharedMemory(create=True, size=64)
        print("made", memory.name, flush=True)
        time.sleep(300)
        """,
    )
    wait_for(lambda: "made" in process.log_tail(1))
    region = Path("/dev/shm", process.log_tail(1).split()[1])
    assert region.exists()
    process.stop(timeout_s=0.2)
    assert not region.exists()
