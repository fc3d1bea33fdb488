"""sync/orphan.py with real processes, one of which is killed."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

CHILD = """
import os, signal, sys, time
from sync.orphan import end_with_parent
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
