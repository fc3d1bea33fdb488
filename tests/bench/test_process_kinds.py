"""Processor time goes to the kind of the process that spent it."""

import subprocess
import sys

import psutil
import pytest

from bench.process_kinds import BRIDGE, ENGINE, FRONT_END, MODEL, OTHER, TRITON, VLLM_RS, CpuTimes, kind_of
from tritonlive.wire.machine import STUB_NAME, UNBATCHED_NAME

SPIN = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\ninput()"


@pytest.mark.parametrize(
    ("name", "command", "kind"),
    [
        ("python", ["python", "-P", "-m", "openai_frontend", "--port", "1"], FRONT_END),
        ("python", ["python", "-P", "-m", "openai_frontend.rust", "--port", "1"], BRIDGE),
        ("python", ["python", "-m", "vllm.entrypoints.launchers.api_server.entry"], FRONT_END),
        ("python", ["python", "-m", "bench.rust_peer"], OTHER),
        ("python", ["python", "-m"], OTHER),
        ("vllm-rs", ["/a/vllm-rs", "frontend"], VLLM_RS),
        ("tritonserver", ["tritonserver", "--model-repository", "a"], TRITON),
        (STUB_NAME, ["/a/triton_python_backend_stub", "model.py"], MODEL),
        (STUB_NAME[:15], ["/a/triton_python_backend_stub", "model.py"], MODEL),
        (UNBATCHED_NAME, ["/a/triton_python_backend_stub", "model.py"], MODEL),
        ("python", ["VLLM::EngineCore"], ENGINE),
        ("python", ["VLLM::Worker_TP0"], ENGINE),
        ("python", [], OTHER),
    ],
)
def test_a_process_has_the_kind_of_its_work(name: str, command: list[str], kind: str) -> None:
    assert kind_of(name, command) == kind


def test_time_is_counted_from_the_start_and_not_for_others() -> None:
    with subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE) as spinning:
        times = CpuTimes([psutil.Process(spinning.pid)])
        idle = CpuTimes([])
        process = psutil.Process(spinning.pid)
        while sum(process.cpu_times()[:2]) < 0.4:
            pass
        spent = times.by_kind()
        assert list(spent) == [OTHER]
        assert spent[OTHER] >= 0.3
        assert idle.by_kind() == {}
        assert CpuTimes([process]).by_kind()[OTHER] < 0.3
        spinning.communicate(b"\n")
    assert times.by_kind() == {}


def test_a_process_that_has_ended_is_left_out() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = psutil.Process(process.pid)
        process.communicate(b"\n")
    assert CpuTimes([gone]).by_kind() == {}
