"""The engine's settings on a CPU."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bench import machine
from tritonlive.backend import cpu
from tritonlive.backend.arguments import parse_arguments
from tritonlive.backend.vllm_seam.arguments import LogicalCPUInfo, is_on_cpu

MODEL = ["--model", "HuggingFaceTB/SmolLM2-135M-Instruct"]
INSIDE = ["--distributed-executor-backend", "uni"]
VARIABLES = ("VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND")
Prepare = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that the module sets is unset before, and restored afterwards."""
    if not is_on_cpu():
        pytest.skip("about vLLM on a CPU")
    for name in (*VARIABLES, *cpu.HUGE_PAGES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """prepare(cores, *options, nodes=1): the added options of an engine on `cores` cores of `nodes` NUMA nodes."""

    def run(cores: int, *options: str, nodes: int = 1) -> list[str]:
        cpus = [LogicalCPUInfo(id=i, physical_core=i, numa_node=i * nodes // cores) for i in range(cores)]
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(cpu, "allowed_cpus", lambda: cpus)
        monkeypatch.setattr(cpu, "num_memory_nodes", lambda: nodes)
        return cpu.prepare(parse_arguments([*MODEL, *options]))

    return run


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


@pytest.mark.parametrize("options", [(), ("--data-parallel-size", "2"), ("-dp", "2")])
def test_on_few_cores_the_worker_lives_in_the_engine_core(prepare: Prepare, options: tuple[str, ...]) -> None:
    assert prepare(2, *options) == INSIDE
    assert environment() == {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


def test_a_lone_worker_inside_has_all_cores_but_one_and_two_share_them(prepare: Prepare) -> None:
    prepare(3)
    assert os.environ.pop("OMP_NUM_THREADS") == "2"
    prepare(3, "--data-parallel-size", "2")
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("cores", "options"), [(4, ()), (2, ("--distributed-executor-backend", "mp"))])
def test_elsewhere_vllm_decides_about_a_lone_worker(prepare: Prepare, cores: int, options: tuple[str, ...]) -> None:
    assert prepare(cores, *options) == []
    assert environment() == {}


@pytest.mark.parametrize(
    ("cores", "options", "binding"),
    [
        (2, "-tp 2", "0|1"),
        (2, "--pipeline-parallel-size 2", "0|1"),
        (2, "-dp 2 --distributed-executor-backend mp", "0|1"),
        (4, "-tp 2", "0|2"),
        (8, "-tp 2", "0,1,2|4,5,6"),
        (8, "-dp 2", "0,1,2|4,5,6"),
        (8, "-tp 2 -pp 2", "0|2|4|6"),
        (8, "-tp 2 -dp 2", "0|2|4|6"),
        (8, "-tp 3", "0|2,3|5,6"),
        (8, "-dp 4 --data-parallel-size-local 2 --data-parallel-address 10.0.0.1", "0,1,2|4,5,6"),
        (8, "-tp 4 --nnodes 2 --master-addr 10.0.0.1", "0,1,2|4,5,6"),
    ],
)
def test_each_worker_has_cores_of_its_own(prepare: Prepare, cores: int, options: str, binding: str) -> None:
    assert prepare(cores, *options.split()) == []
    assert environment() == {"VLLM_CPU_OMP_THREADS_BIND": binding}


@pytest.mark.parametrize(
    ("cores", "options", "threads"), [(2, "-tp 4", "1"), (1, "-tp 2", "1"), (2, "-tp 2 -pp 2 -dp 2", "1")]
)
def test_with_fewer_cores_than_workers_no_worker_is_bound(
    prepare: Prepare, cores: int, options: str, threads: str
) -> None:
    assert prepare(cores, *options.split()) == []
    assert environment() == {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def test_vllm_gives_each_worker_a_node_where_there_are_enough(prepare: Prepare) -> None:
    assert prepare(16, "-tp", "2", nodes=2) == []
    assert environment() == {}


def test_vllm_would_give_the_ranks_of_data_parallelism_the_same_node(prepare: Prepare) -> None:
    prepare(16, "-dp", "2", nodes=2)
    assert environment() == {"VLLM_CPU_OMP_THREADS_BIND": "0,1,2,3,4,5,6|8,9,10,11,12,13,14"}


@pytest.mark.parametrize("binding", ["auto", "nobind", "0-1|2-3"])
def test_a_binding_the_user_sets_stays(prepare: Prepare, monkeypatch: pytest.MonkeyPatch, binding: str) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", binding)
    prepare(8, "-tp", "2")
    assert environment() == {"VLLM_CPU_OMP_THREADS_BIND": binding}


@pytest.mark.parametrize(("stages", "calls"), [(1, []), (2, ["execute_dummy_batch"])])
async def test_the_stages_of_a_pipeline_run_an_empty_step_before_the_first_request(
    stages: int, calls: list[str]
) -> None:
    called: list[str] = []

    async def collective_rpc(method: str) -> None:
        called.append(method)

    config = SimpleNamespace(parallel_config=SimpleNamespace(pipeline_parallel_size=stages))
    llm: Any = SimpleNamespace(vllm_config=config, collective_rpc=collective_rpc)
    await cpu.allocate_stage_inputs(llm)
    assert called == calls


def test_of_two_threads_of_a_core_one_computes() -> None:
    siblings = [LogicalCPUInfo(id=i, physical_core=i % 4, numa_node=0) for i in range(8)]
    assert cpu.split_cores(siblings, 2) == "4|6"
    assert cpu.split_cores(siblings, 8) == "0|1|2|3|4|5|6|7", "threads are better than none"


def test_a_worker_stays_on_one_node() -> None:
    interleaved = [LogicalCPUInfo(id=i, physical_core=i, numa_node=i % 2) for i in range(8)]
    assert cpu.split_cores(interleaved, 2) == "0,2,4|1,3,5"


def test_a_gpu_is_left_alone(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "is_on_cpu", lambda: False)
    assert prepare(2, "-tp", "2") == []
    assert environment() == {}
    assert not os.environ.keys() & cpu.HUGE_PAGES.keys()


def test_the_engines_processes_use_huge_pages(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(2)
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    prepare(2)
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=1", "the caller's environment wins"


def test_a_benchmark_gives_every_system_the_same() -> None:
    assert machine.HUGE_PAGES == cpu.HUGE_PAGES
    assert machine.SPINNING_CORES == cpu.SPINNING_CORES
