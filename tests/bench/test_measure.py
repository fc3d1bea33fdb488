"""The harness against a server that answers at once: no stack, but a real socket and the real client process."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from bench.client import LoadError, run_job
from bench.goals import Goal
from bench.loads import Completions
from bench.measure import Effort, Figures, Result, run_load
from bench.memory import Memory
from bench.report import Report, print_report, write_results
from bench.server_load import ServerSide
from bench.start import StartFirstToken
from tests.bench.stand_ins import LocalServer, local_server

TOKENS = 5


def answer(body: dict[str, Any]) -> tuple[int, bytes]:
    """Every completion has `TOKENS` tokens, and the model `broken` an error."""
    usage = {"prompt_tokens": 3, "completion_tokens": TOKENS}
    if body["model"] == "broken":
        return 500, b"no such engine"
    if not body.get("stream"):
        return 200, json.dumps({"usage": usage}).encode()
    token, end = {"choices": [{"index": 0, "text": "a"}]}, {"choices": [], "usage": usage}
    events = [json.dumps(event, separators=(",", ":")) for event in (token, token, end)]
    return 200, "".join(f"data: {event}\n\n" for event in (*events, "[DONE]")).encode()


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.SETTLE_S", 0.0)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server(answer) as server:
        yield server


def load(*, stream: bool, goals: tuple[Goal, ...] = ()) -> Completions:
    return Completions(stream=stream, concurrency=2, num_requests=4, max_tokens=TOKENS, goals=goals)


def measured(server: LocalServer, goals: tuple[Goal, ...], said: list[str]) -> Result:
    streams = load(stream=True, goals=goals)
    sides = (ServerSide("ours", server, streams, "m"), ServerSide("theirs", server, streams, "m"))
    return run_load(streams, sides, Effort(2, 2, 0.0), said.append)


def test_a_load_is_measured_interleaved(server: LocalServer) -> None:
    said: list[str] = []
    result = measured(server, (), said)
    order = [line.split(", ")[1].split(":")[0] for line in said if "of 2" in line]
    assert order == ["ours", "theirs", "theirs", "ours"]
    assert result.values("ours", "completion tokens") == [4 * TOKENS, 4 * TOKENS]
    assert len(result.values("theirs", "ttft p50 ms")) == 2


def test_every_goal_is_a_row_of_the_table_and_of_the_files(server: LocalServer, tmp_path: Path) -> None:
    goals = (Goal("tokens/s", "higher", 1e9), Goal("ttft p50 ms", "lower", 1e9, compare="added", label="TTFT"))
    report = Report("tiny", [measured(server, goals, [])])
    console = Console(width=200, record=True)
    print_report(console, report)
    text = console.export_text()
    assert "MISSED" in text
    assert "completions-stream/2 TTFT" in text
    assert not report.is_ok
    written = write_results([report], {"cpu": "a", "cores": 2}, {}, tmp_path / "bench.json")
    rows = json.loads(written[0].read_text())["models"][0]["rows"]
    assert [(row["name"], row["verdict"]) for row in rows] == [
        ("completions-stream/2", "MISSED"),
        ("completions-stream/2 TTFT", "ok"),
    ]
    assert all(path.stat().st_size for path in written)


class Clock:
    """A side whose runs take a while."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_prepared = 0

    def processes(self) -> list[psutil.Process]:
        return []

    def warm_up(self) -> None:
        """Do nothing."""

    def prepare(self) -> None:
        self.num_prepared += 1

    def run(self, seed: int) -> Figures:
        time.sleep(0.05)
        return {"seconds": 0.05}


def test_a_side_alone_is_measured_and_held_against_its_target(tmp_path: Path) -> None:
    goals = (Goal("seconds", "lower", 1.0, compare="absolute"), Goal("seconds", "lower", compare="absolute", label="b"))
    result = run_load(load(stream=False, goals=goals), [Clock("ours")], Effort(2, 2, 0.0), lambda text: None)
    assert (result.ours, result.theirs, result.sides, result.repeats) == ("ours", "", ["ours"], 2)
    report = Report("tiny", [result])
    console = Console(width=200, record=True)
    print_report(console, report)
    (line,) = [line for line in console.export_text().splitlines() if line.lstrip().startswith("completions/2  ")]
    assert [cell for cell in line.split() if cell in ("0.05", "ok", "/")] == ["0.05", "0.05", "0.05", "0.05", "ok"]
    written = write_results([report], {"cpu": "a", "cores": 2}, {}, tmp_path / "bench.json")
    rows = json.loads(written[0].read_text())["models"][0]["rows"]
    assert [(row["verdict"], list(row["sides"])) for row in rows] == [("ok", ["ours"]), (None, ["ours"])]
    assert all(path.stat().st_size for path in written)


@pytest.mark.parametrize(("effort", "repeats"), [(Effort(3, 9, 0.0), 2), (Effort(4, 4, math.inf), 4)])
def test_a_long_load_is_content_with_less_unless_a_number_is_asked_for(effort: Effort, repeats: int) -> None:
    long_load = StartFirstToken()
    assert long_load.least_repeats == 2
    assert run_load(long_load, [Clock("ours")], effort, lambda text: None).repeats == repeats


@pytest.mark.parametrize(
    ("effort", "repeats"), [(Effort(2, 9, 0.0), 2), (Effort(2, 9, 0.35), 4), (Effort(1, 2, 60.0), 2)]
)
def test_a_load_is_repeated_by_the_clock_within_bounds(effort: Effort, repeats: int) -> None:
    sides = (Clock("ours"), Clock("theirs"))
    assert run_load(load(stream=False), sides, effort, lambda text: None).repeats == repeats
    assert [side.num_prepared for side in sides] == [repeats, repeats]


def test_without_a_stream_there_is_no_ttft(server: LocalServer) -> None:
    outcome = run_job(load(stream=False).job(server.url, "m", seed=0))
    assert outcome.completion_tokens == 4 * TOKENS
    assert outcome.ttft_p50 is None
    assert "ttft p50 ms" not in outcome.figures()


def test_requests_with_times_are_sent_then_and_not_before(server: LocalServer) -> None:
    job = load(stream=True).job(server.url, "m", seed=0)
    outcome = run_job(replace(job, arrivals_s=[0.0, 0.1, 0.2, 0.4]))
    assert outcome.completion_tokens == 4 * TOKENS
    assert 0.4 <= outcome.wall_s < 5


def test_the_memory_of_the_systems_is_in_the_report_and_in_the_file(tmp_path: Path) -> None:
    memory = {"tritonlive": Memory(410.4, 2900.0), "vllm": Memory(700.0, 3000.2)}
    report = Report("tiny", memory=memory)
    console = Console(width=200, record=True)
    print_report(console, report)
    assert "tritonlive 410 / 2900, vllm 700 / 3000" in console.export_text()
    (path,) = write_results([report], {"cpu": "a", "cores": 2}, {}, tmp_path / "bench.json")
    systems = json.loads(path.read_text())["models"][0]["systems"]
    assert systems["tritonlive"] == {"frontend_pss_mib": 410.4, "pss_mib": 2900.0}


def test_a_failed_request_voids_the_measurement(server: LocalServer) -> None:
    with pytest.raises(LoadError, match="no such engine"):
        run_job(load(stream=False).job(server.url, "broken", seed=0))
