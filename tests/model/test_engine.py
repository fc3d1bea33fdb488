"""What the engine is started with."""

import os
from collections.abc import Callable
from types import ModuleType

import pytest

from bench import machine

MODEL = ["--model", "HuggingFaceTB/SmolLM2-135M-Instruct"]
INSIDE = ["--distributed-executor-backend", "uni"]


@pytest.fixture
def engine(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("engine")
    if not module.current_platform.is_cpu():
        pytest.skip("about vLLM on a CPU")
    # Set and unset by monkeypatch, so that what the function sets is undone.
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return module


def has_cores(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(number)))


def test_on_few_cores_the_worker_lives_in_the_engine_core(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    has_cores(monkeypatch, 2)
    assert engine.with_worker_inside(MODEL) == [*MODEL, *INSIDE]
    assert (os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"], os.environ["OMP_NUM_THREADS"]) == ("0", "1")


@pytest.mark.parametrize(
    ("cores", "extra"),
    [
        (4, []),
        (2, ["--distributed-executor-backend", "mp"]),
        (2, ["--tensor-parallel-size", "2"]),
        (2, ["--data-parallel-size", "2"]),
    ],
)
def test_elsewhere_vllm_decides(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch, cores: int, extra: list[str]
) -> None:
    has_cores(monkeypatch, cores)
    assert engine.with_worker_inside([*MODEL, *extra]) == [*MODEL, *extra]
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ


def test_the_engines_processes_keep_what_they_free(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in engine.KEEPING_MEMORY:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    engine.keep_memory()
    assert os.environ["MALLOC_MMAP_MAX_"] == "0"
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "1", "the caller's environment wins"


def test_a_benchmark_gives_every_system_the_same(engine: ModuleType) -> None:
    assert machine.KEEPING_MEMORY == engine.KEEPING_MEMORY
    assert machine.SPINNING_CORES == engine.SPINNING_CORES
