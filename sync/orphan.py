"""A process that nobody needs without its parent ends with it."""

import os
import signal
import threading
import time

LOOK_INTERVAL_S = 1.0
# How long it may take to end in good order.
END_TIMEOUT_S = 3.0
THREAD_NAME = "end-with-parent"


def end_with_parent() -> None:
    """Have this process end soon after its parent has, however that ended; more than once is fine.

    It gets SIGTERM, then SIGKILL. Linux's own signal for this (PR_SET_PDEATHSIG) would come when the thread ends that
    started the process, which Triton's and vLLM's do early.
    """
    if any(thread.name == THREAD_NAME for thread in threading.enumerate()):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_INTERVAL_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(END_TIMEOUT_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=THREAD_NAME, daemon=True).start()
