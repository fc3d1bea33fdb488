"""A process that nobody needs without its parent ends with it."""

import os
import signal
import threading
import time
from contextlib import suppress

import psutil

LOOK_INTERVAL_S = 1.0
# How long it may take to end in good order.
END_TIMEOUT_S = 3.0
THREAD_NAME = "end-with-parent"
# The process that Triton runs a Python model in.
STUB_NAME = "triton_python_backend_stub"
# In the title of vLLM's coordinator of data parallelism.
COORDINATOR_TITLE = "DPCoordinator"


def end_with_parent() -> None:
    """Have this process end soon after its parent has, however that ended; more than once is fine.

    It gets SIGTERM, then SIGKILL. Linux's own signal for this (PR_SET_PDEATHSIG) would come when the thread ends that
    started the process, which Triton's and vLLM's do early. A child of Triton's stub also ends a stub that hangs
    without its server, and then itself.

    vLLM starts one process before its engine cores in which it loads no plugins, the coordinator of data parallelism:
    an engine core ends that one too.
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
                    # A server killed in the middle leaves locks held that the stub can wait for forever, with the
                    # interpreter's lock in its hand: a thread like this one cannot run there.
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
