"""One stack is behind our front ends and Triton's endpoint; every system gets the load."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bench.systems
from bench.front_ends.__main__ import Comparison
from bench.front_ends.comparison import plan, sides
from bench.front_ends.grpc_side import GrpcSide
from bench.front_ends.names import GRPC, OURS, OURS_RUST, VLLM, VLLM_RUST
from bench.front_ends.stream_load import Generator, StreamSide
from bench.server_load import ServerSide
from bench.systems import SYSTEMS, Settings, Systems
from tests.bench.stand_ins import LocalServer
from tritonlive.launch.errors import LaunchError

GENERATOR = Generator(Path("vllm-rs"), Path("m"))


class OurStack(LocalServer):
    """A stack with two front ends."""

    @property
    def rust(self) -> LocalServer:
        return LocalServer("http://rust")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    started: list[tuple[str, dict[str, Any]]] = []

    def system(name: str) -> Any:
        @contextmanager
        def start(settings: Settings, **options: Any) -> Iterator[LocalServer]:
            started.append((name, options))
            yield OurStack(f"http://{name}")

        return start

    for name in SYSTEMS:
        monkeypatch.setitem(SYSTEMS, name, system(name))
    monkeypatch.setattr(bench.systems, "tritonlive", system(OURS))
    return started


def test_systems_start_once_and_all_get_each_load(started: list[tuple[str, dict[str, Any]]]) -> None:
    with Systems(Settings(Path("m")), (OURS, VLLM), lambda label: None) as systems:
        by_load = {load.name: sides(systems, load, GENERATOR) for load in plan((64,))}
    assert sorted(started, key=str) == [(OURS, {"rust_port": 0}), (VLLM, {}), (VLLM_RUST, {})]
    four = [VLLM, VLLM_RUST, OURS, OURS_RUST]
    assert [side.name for side in by_load["chat-stream/64"]] == four
    assert [side.name for side in by_load["chat/64"]] == four
    for name in ("completions/64", "completions-stream/64"):
        assert [side.name for side in by_load[name]] == [*four, GRPC]


def test_streams_and_whole_answers_have_their_clients(started: list[tuple[str, dict[str, Any]]]) -> None:
    stream, _, whole, _ = plan((64,))
    with Systems(Settings(Path("m")), (OURS, VLLM), lambda label: None) as systems:
        *streams, streamed = sides(systems, stream, GENERATOR)
        *wholes, at_once = sides(systems, whole, GENERATOR)
    urls = ["http://vllm", "http://vllm-rust", "http://tritonlive", "http://rust"]
    assert [each.url for each in streams if isinstance(each, StreamSide)] == urls
    assert [each.server.url for each in wholes if isinstance(each, ServerSide)] == urls
    assert isinstance(streamed, GrpcSide)
    assert isinstance(at_once, GrpcSide)
    assert (streamed.stream, at_once.stream) == (True, False)
    job = streamed.job(1, 3)
    assert (len(job.prompts), len(set(job.prompts)), job.concurrency) == (3, 3, 64)
    assert job.prompts != streamed.job(2, 3).prompts


def test_only_systems_that_are_asked_for_start(started: list[tuple[str, dict[str, Any]]]) -> None:
    stream, *_ = plan((1,))
    with Systems(Settings(Path("m")), (OURS, VLLM), lambda label: None) as systems:
        assert [side.name for side in sides(systems, stream, GENERATOR, [OURS_RUST, VLLM])] == [VLLM, OURS_RUST]
    assert [name for name, _ in started] == [VLLM, OURS]


def test_a_system_that_does_not_start_leaves_the_others(
    started: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(settings: Settings) -> Any:
        raise LaunchError("no binary")

    monkeypatch.setitem(SYSTEMS, VLLM_RUST, fails)
    comparison = Comparison(GENERATOR, [""], 1, math.inf)
    measured: list[list[str]] = []
    monkeypatch.setattr(comparison, "measure", lambda load, sides: measured.append([side.name for side in sides]))
    comparison.measure_systems((), plan((64,))[:1], [VLLM, VLLM_RUST, OURS_RUST, GRPC])
    assert measured == [[VLLM, OURS_RUST, GRPC]]
    assert comparison.report.failures == {VLLM_RUST: "no binary"}


def test_no_load_begins_after_the_deadline() -> None:
    comparison = Comparison(GENERATOR, [""], 1, deadline=0.0)
    comparison.measure(plan((64,))[0], [])
    assert (comparison.report.results, comparison.report.failures) == ([], {})
