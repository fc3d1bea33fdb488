"""sync/worker/orphan.py with real processes, one of which is killed."""

import inspect
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sync.worker.orphan import COORDINATOR_TITLE
from tritonlive.wire.machine import STUB_NAME

CHILD = """
import os, signal, sys, time
from sync.worker.orphan import end_with_parent
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_with_parent()
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.parametrize("manner", ["obedient", "stubborn"])
def test_it_ends_with_its_parent(manner: str) -> None:
    command = [sys.executable, "-c", PARENT, CHILD, manner]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(1.5)
        assert child.is_running(), "as long as its parent does"
        os.kill(parent.pid, signal.SIGKILL)
        child.wait(timeout=30)


@pytest.mark.parametrize("name", [STUB_NAME, "python"])
def test_a_stub_that_hangs_without_its_server_is_ended_and_nothing_else_is(name: str, tmp_path: Path) -> None:
    """One that is stopped runs no Python, as one that waits with the interpreter's lock."""
    stub_path = tmp_path / name
    stub_path.symlink_to(os.path.realpath(sys.executable))
    server = f"import subprocess, sys; subprocess.run([{str(stub_path)!r}, '-c', *sys.argv[1:]])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHOME": sys.base_prefix}
    stub = PARENT.replace("sys.executable", repr(sys.executable))
    command = [sys.executable, "-c", server, stub, CHILD, "obedient"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        hanging = child.parent()
        assert hanging is not None
        hanging.suspend()
        os.kill(parent.pid, signal.SIGKILL)
        try:
            if name == STUB_NAME:
                hanging.wait(timeout=30)
                child.wait(timeout=30)
            else:
                time.sleep(10)
                assert hanging.is_running(), "another program with a child of ours is not ours to end"
        finally:
            for process in (hanging, child):
                if process.is_running():
                    process.kill()


def test_the_coordinator_of_data_parallelism_is_ended_and_no_other_sibling(tmp_path: Path) -> None:
    titles = ("VLLM::DPCoordinator", "somebody")
    for title in titles:
        (tmp_path / title).symlink_to("/bin/sleep")
    siblings = [[str(tmp_path / title), "600"] for title in titles]
    parent_code = f"""
import subprocess, sys
for command in {siblings!r}:
    print(subprocess.Popen(command).pid, flush=True)
subprocess.run([sys.executable, '-c', *sys.argv[1:]])
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent_code, CHILD, "obedient"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        coordinator, other, child = (psutil.Process(int(parent.stdout.readline())) for _ in range(3))
        try:
            os.kill(parent.pid, signal.SIGKILL)
            child.wait(timeout=30)
            coordinator.wait(timeout=10)
            assert other.is_running()
        finally:
            for process in (coordinator, other, child):
                if process.is_running():
                    process.kill()


def test_vllms_coordinator_still_has_that_title() -> None:
    source = inspect.getsource(pytest.importorskip("vllm.v1.engine.coordinator"))
    assert f'"{COORDINATOR_TITLE}"' in source
