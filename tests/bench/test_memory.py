"""Memory is that of the processes that still run."""

import subprocess
import sys

import psutil

from bench.memory import pss_mib


def test_what_processes_hold_is_summed_and_what_has_ended_holds_nothing():
    own = psutil.Process()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        process = psutil.Process(other.pid)
        assert pss_mib([own, process]) > pss_mib([process]) > 0
        other.communicate(b"\n")
    assert pss_mib([process]) == 0
