"""Ending a process when its parent has ended."""

import os
import signal
import threading
import time
from contextlib import suppress

import psutil

from tritonlive.wire.machine import STUB_NAME

LOOK_INTERVAL_S = 1.0
# Time for an orderly end.
END_TIMEOUT_S = 3.0
THREAD_NAME = "end-with-parent"
# Part of the process title of vLLM's coordinator of data parallelism.
COORDINATOR_TITLE = "DPCoordinator"


def end_with_parent() -> None:
    """End this process soon after its parent has ended, for whatever reason. Repeated calls do nothing.

    The process gets SIGTERM, then SIGKILL. Linux's own signal for this (PR_SET_PDEATHSIG) is sent when the thread that
    started the process ends, which is too early with Triton and vLLM. A child of Triton's stub also kills a stub that
    hangs without its server, and then ends itself.

    vLLM loads no plugins in its coordinator of data parallelism, so an engine core ends that process too.
    """
    if any(thread.name == THREAD_NAME for thread in threading.enumerate()):
        return
    parent = psutil.Process(os.getppid())
    is_stub, server = parent.name() == STUB_NAME, parent.ppid()
    siblings = parent.children()

    def watch() -> None:
        while os.getppid() == parent.pid:
            with suppress(psutil.NoSuchProcess):
                if is_stub and parent.ppid() != server:
                    # A killed server leaves locks that the stub may wait for forever while it holds the interpreter's
                    # lock. A thread like this one cannot run there.
                    time.sleep(2 * END_TIMEOUT_S)
                    parent.kill()
            time.sleep(LOOK_INTERVAL_S)
        for sibling in siblings:
            with suppress(psutil.NoSuchProcess):
                if any(COORDINATOR_TITLE in argument for argument in sibling.cmdline()):
                    sibling.terminate()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(END_TIMEOUT_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=THREAD_NAME, daemon=True).start()
