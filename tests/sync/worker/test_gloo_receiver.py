"""The receiver's thread, apart from what travels (test_weight_sync.py, test_gloo_faults.py)."""

import os
import threading

import pytest

from sync.worker.gloo_receiver import use_any_core


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or os.cpu_count() == 1, reason="needs Linux and two cores")
def test_a_thread_of_a_bound_process_gets_all_cores():
    """As in a vLLM worker, the main thread is bound to its compute cores."""
    all_cores = os.sched_getaffinity(0)
    seen: list[set[int]] = []

    def run() -> None:
        seen.append(os.sched_getaffinity(0))
        use_any_core()
        seen.append(os.sched_getaffinity(0))

    os.sched_setaffinity(0, {min(all_cores)})
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert seen == [{min(all_cores)}, all_cores]
        assert os.sched_getaffinity(0) == {min(all_cores)}  # the others stay bound
    finally:
        os.sched_setaffinity(0, all_cores)
