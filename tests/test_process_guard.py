"""The guard finds processes that a test starts, and reports that test."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import process_guard
from tests.process_guard import ProcessGuard

# Starts a program and ends, so that no process of the tests is the program's parent.
ORPHAN = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=-3, stderr=-3).pid)"


@pytest.fixture
def guard() -> ProcessGuard:
    """A guard separate from the session's. Each tracks only processes that carry its own value."""
    return ProcessGuard()


@pytest.fixture
def server(tmp_path: Path, guard: ProcessGuard) -> Iterator[psutil.Process]:
    """A program called tritonserver, started by a process that has ended."""
    binary = tmp_path / "tritonserver"
    shutil.copy(shutil.which("sleep") or "sleep", binary)
    environment = os.environ | {process_guard.VARIABLE: guard.value}
    command = [sys.executable, "-c", ORPHAN, str(binary), "60"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    process = psutil.Process(int(done.stdout))
    yield process
    process.kill()


def test_a_server_is_blamed_once_on_the_test_that_started_it(
    guard: ProcessGuard, request: pytest.FixtureRequest
) -> None:
    guard.begin("a unit test", may_start=False)
    process = request.getfixturevalue("server")
    time.sleep(0.02)
    guard.begin("the next test", may_start=False)
    guard.look()
    guard.look()
    (offence,) = guard.offences
    assert offence.startswith(f"a unit test started process {process.pid}: ")
    assert "/tritonserver 60" in offence


def test_a_server_of_a_stacks_test_is_no_offence(guard: ProcessGuard, request: pytest.FixtureRequest) -> None:
    guard.begin("a test of the stack", may_start=True)
    request.getfixturevalue("server")
    guard.look()
    assert guard.offences == []


def test_servers_of_other_test_processes_are_not_ours(server: psutil.Process) -> None:
    other = ProcessGuard()
    other.begin("a unit test", may_start=False)
    other.look()
    assert server.is_running()
    assert other.offences == []


def test_a_script_called_tritonserver_is_no_server(guard: ProcessGuard, tmp_path: Path) -> None:
    guard.begin("a unit test", may_start=False)
    script = tmp_path / "tritonserver"
    script.write_text(f"#!{sys.executable}\nimport time\nprint('up', flush=True)\ntime.sleep(60)\n")
    script.chmod(0o755)
    environment = os.environ | {process_guard.VARIABLE: guard.value}
    with subprocess.Popen([script], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert psutil.Process(process.pid).name() == "tritonserver"
        guard.look()
        process.kill()
    assert guard.offences == []


def test_an_engine_is_found_by_its_title(guard: ProcessGuard, tmp_path: Path) -> None:
    guard.begin("a unit test", may_start=False)
    code = "import setproctitle, sys; setproctitle.setproctitle('VLLM::EngineCore'); print('up', flush=True); input()"
    environment = os.environ | {process_guard.VARIABLE: guard.value}
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        guard.look()
        process.communicate("\n", timeout=30)
    (offence,) = guard.offences
    assert "VLLM::EngineCore" in offence
