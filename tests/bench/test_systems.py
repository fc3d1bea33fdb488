"""Systems are started once, on first use, shared by the loads, and stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bench.systems
from bench.scale import Replicas, Workers
from bench.systems import SYSTEMS, Settings, Systems
from tests.bench.stand_ins import LocalServer


class Running:
    """Fake of every system: each is a server in this process. Records the running ones and their options."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.options: list[dict[str, Any]] = []

    def system(self, name: str) -> Any:
        @contextmanager
        def start(settings: Settings, **options: Any) -> Iterator[LocalServer]:
            self.names.append(name)
            self.options.append(options)
            yield LocalServer("http://a")
            self.names.remove(name)

        return start


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Running:
    running = Running()
    for name in SYSTEMS:
        monkeypatch.setitem(SYSTEMS, name, running.system(name))
    monkeypatch.setattr(bench.systems, "tritonlive", running.system("tritonlive"))
    return running


def test_a_server_is_started_when_it_is_asked_for_and_only_once(running: Running):
    started: list[str] = []
    with Systems(Settings(Path("m")), ("tritonlive", "vllm"), started.append) as systems:
        assert running.names == []
        for label in ("tritonlive", "vllm", "tritonlive", "vllm again"):
            systems.server(label)
        assert systems.replica is systems.server("tritonlive")
        assert running.names == ["tritonlive", "vllm", "vllm"]
    assert started == ["tritonlive", "vllm", "vllm again"]
    assert running.names == []


def test_after_a_stop_the_machine_is_free_and_all_can_be_had_again(running: Running):
    with Systems(Settings(Path("m")), ("tritonlive", "vllm"), lambda label: None) as systems:
        systems.server("vllm")
        systems.stop()
        assert running.names == []
        systems.server("vllm")
        assert running.names == ["vllm"]


def test_a_server_of_ones_own_ends_with_the_with(running: Running):
    with Systems(Settings(Path("m")), ("tritonlive", "vllm again"), lambda label: None) as systems:
        with systems.start("vllm again"):
            assert running.names == ["vllm"]
        assert running.names == []


def test_what_ours_and_theirs_hold_is_looked_at_before_they_stop(running: Running):
    with Systems(Settings(Path("m")), ("tritonlive", "vllm"), lambda label: None) as systems:
        systems.server("vllm")
        assert len(systems.fleet) == 2
        systems.stop()
        assert set(systems.memory) == {"vllm"}
        assert systems.replica.processes()
    assert set(systems.memory) == {"tritonlive", "vllm"}
    vllm = systems.memory["vllm"]
    assert vllm.frontend_pss_mib > 0
    # There is one process, but it is measured twice, and its memory changes in between.
    assert vllm.frontend_pss_mib == pytest.approx(vllm.pss_mib, rel=0.05)


def test_a_fleets_replicas_have_cores_of_their_own(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    with Systems(Settings(Path("m")), ("tritonlive", "vllm"), lambda label: None) as systems:
        assert len(systems.fleet) == 2
    assert [options["env"]["VLLM_CPU_OMP_THREADS_BIND"] for options in running.options] == ["0,1", "2,3"]


def test_one_front_end_may_serve_both_halves(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    with Systems(Settings(Path("m")), ("tritonlive", "vllm"), lambda label: None) as systems:
        ours, theirs = Replicas().sides(systems)
        assert (ours.name, theirs.name) == ("2 replicas", "1 replica")
    first, second = running.options
    assert first["frontend_args"] == ()
    assert second["frontend_args"] == ("--triton-url", "a:8001")


def test_two_workers_are_a_stack_of_their_own(running: Running):
    with Systems(Settings(Path("m")), ("tritonlive", "vllm"), lambda label: None) as systems:
        Workers().sides(systems)
    assert [options.get("workers", 1) for options in running.options] == [1, 2]
