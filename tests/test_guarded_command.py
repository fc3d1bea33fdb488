"""Commands that end with their parent, as real processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tritonlive.guarded_command import ends_with_parent

PARENT = """
import subprocess, sys
from tritonlive.guarded_command import ends_with_parent
print(subprocess.Popen(ends_with_parent(["sleep", "60"])).pid, flush=True)
sys.stdin.read()
"""


def test_the_command_runs_with_its_arguments_as_they_are() -> None:
    arguments = ["a b", "$HOME", "'\"", "line\nbreak", ""]
    program = "import sys; print(sys.argv[1:])"
    done = subprocess.run(
        ends_with_parent([sys.executable, "-c", program, *arguments]), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == str(arguments)


def test_its_exit_status_is_the_commands() -> None:
    assert subprocess.run(ends_with_parent(["sh", "-c", "exit 7"]), check=False).returncode == 7


def test_without_setpriv_the_command_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert ends_with_parent(["sleep", "1"]) == ["sleep", "1"]


@pytest.mark.parametrize("delay_s", ["0", "0.5"])
def test_it_ends_with_its_parent_even_if_that_ends_before_the_signal_is_set(tmp_path: Path, delay_s: str) -> None:
    slow = tmp_path / "setpriv"
    slow.write_text(f'#!/bin/sh\nsleep {delay_s}\nexec {shutil.which("setpriv")} "$@"\n')
    slow.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        if delay_s == "0":
            while child.name() != "sleep":  # the signal is set
                pass
        parent.kill()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
