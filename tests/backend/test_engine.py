"""The engine's life on its own loop, with an AsyncLLM that a test lets fail."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tritonlive.backend import cpu, engine
from tritonlive.backend.engine import Engine
from tritonlive.backend.settings import Settings
from tritonlive.backend.tensors import Unavailable

MODEL = ["--model", "HuggingFaceTB/SmolLM2-135M-Instruct"]


class Llm:
    """AsyncLLM as far as its life goes."""

    def __init__(self, calls: list[str]) -> None:
        self.errored = False
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(pipeline_parallel_size=1))
        self.engine_core = SimpleNamespace(
            resources=SimpleNamespace(
                engine_manager=None, ctx=SimpleNamespace(destroy=lambda linger: calls.append("close context"))
            ),
            ctx=SimpleNamespace(_sockets=()),
        )
        self._calls = calls

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def _run_output_handler(self) -> None:
        asyncio.get_running_loop()  # as AsyncLLM's, it needs the loop
        self._calls.append("output handler")

    def shutdown(self, timeout: float) -> None:
        self._calls.append("shutdown")


class FakeEngine(Engine):
    """Makes Llms; the first `num_failures` starts fail."""

    def __init__(self) -> None:
        super().__init__(Settings(MODEL, None))
        self.calls: list[str] = []
        self.num_failures = 0
        self.processes: list[Any] = []

    def create_llm(self) -> Any:
        assert threading.current_thread() is not self._thread, "the loop must stay free"
        self.calls.append("create")
        if self.num_failures:
            self.num_failures -= 1
            raise RuntimeError("no memory")
        llm: Any = Llm(self.calls)
        llm.engine_core.resources.engine_manager = SimpleNamespace(processes=self.processes)
        return llm


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    monkeypatch.setattr(engine, "SUPERVISION_INTERVAL_S", 0.01)
    monkeypatch.setattr(engine, "RESTART_DELAY_S", 0.01)
    monkeypatch.setattr(cpu, "prepare", lambda _arguments: [])
    made = FakeEngine()
    yield made
    made.stop()
    made.loop.close()


def until(is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_over():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_starts_with_its_hooks_before_outputs_are_handled(running: FakeEngine) -> None:
    async def slow(_llm: Any) -> None:
        await asyncio.sleep(0.01)
        running.calls.append("awaited hook")

    running.on_start(lambda _llm: running.calls.append("hook"))
    running.on_start(slow)
    with pytest.raises(Unavailable):
        _ = running.llm
    running.start()
    assert running.calls == ["create", "hook", "awaited hook", "output handler"]
    assert (running.is_running, running.supported_tasks) == (True, ("generate",))


def test_what_vllm_raises_at_the_first_start_ends_the_model(running: FakeEngine) -> None:
    running.num_failures = 1
    with pytest.raises(RuntimeError, match="no memory"):
        running.start()


def test_a_dead_engine_is_started_again_until_it_comes_back(running: FakeEngine) -> None:
    deaths: list[str] = []
    running.on_start(lambda _llm: running.calls.append("hook"))
    running.on_death(deaths.append)
    running.start()
    first, died = running.llm, running.died
    running.calls.clear()
    running.num_failures = 2
    setattr(first, "errored", True)  # noqa: B010 - AsyncLLM's is a property
    assert not running.is_running
    until(lambda: running.num_restarts == 1)
    assert deaths == ["the engine died and is being started again"]
    assert running.calls == ["shutdown", "close context", *["create"] * 3, "hook", "output handler"]
    assert running.llm is not first
    assert died.done()
    assert not running.died.done()


def test_killing_ends_the_processes_and_their_children(running: FakeEngine) -> None:
    running.start()
    child = "import time; print(1, flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the child runs
        llm: Any = running.llm
        llm.engine_core.resources.engine_manager = SimpleNamespace(processes=[process])
        running.kill()
        process.wait(10)
        assert process.stdout.read() == b"", "the child's end of the pipe is closed, too"


def test_when_a_worker_ends_the_engine_core_is_killed_at_once(running: FakeEngine) -> None:
    worker = "exec -a VLLM::Worker_TP0 sleep 60"
    with subprocess.Popen(["bash", "-c", f"({worker}) & echo $!; while :; do sleep 0.05; done"], stdout=-1) as core:
        assert core.stdout is not None
        pid = int(core.stdout.readline())
        until(lambda: "Worker" in " ".join(psutil.Process(pid).cmdline()))
        running.processes = [core]
        running.start()
        time.sleep(0.1)
        assert core.poll() is None, "all is well"
        os.kill(pid, signal.SIGKILL)
        assert core.wait(10) == -signal.SIGKILL


def test_when_one_engine_core_ends_the_others_are_killed_at_once(running: FakeEngine) -> None:
    """vLLM terminates them first, and only then says that the engine has failed."""
    stubborn = "trap : TERM; echo up; while :; do sleep 0.05; done"
    with (
        subprocess.Popen(["bash", "-c", stubborn], stdout=-1) as one,
        subprocess.Popen(["bash", "-c", stubborn], stdout=-1) as other,
    ):
        for core in (one, other):
            assert core.stdout is not None
            core.stdout.readline()
        running.processes = [one, other]
        running.start()
        time.sleep(0.1)
        assert (one.poll(), other.poll()) == (None, None), "all is well"
        one.kill()
        assert other.wait(10) == -signal.SIGKILL


def test_a_stopped_engine_is_not_started_again(running: FakeEngine) -> None:
    running.start()
    running.stop()
    assert running.calls == ["create", "output handler", "shutdown"]
    assert not running.is_running
