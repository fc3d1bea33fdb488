"""The harness against a server that answers at once: no stack, but a real socket and the real client process."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from bench.client import LoadError, run_job
from bench.goals import Goal
from bench.loads import Completions, ServerSide
from bench.measure import Effort, Figures, Result, run_load
from bench.report import Report, print_report, write_results

TOKENS = 5


class Answers(BaseHTTPRequestHandler):
    """Answers every completion with `TOKENS` tokens, and the model `broken` with an error."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        usage = {"prompt_tokens": 3, "completion_tokens": TOKENS}
        if body["model"] == "broken":
            self.send(500, b"no such engine")
        elif body.get("stream"):
            token, end = {"choices": [{"index": 0, "text": "a"}]}, {"choices": [], "usage": usage}
            events = [json.dumps(event, separators=(",", ":")) for event in (token, token, end)]
            self.send(200, "".join(f"data: {event}\n\n" for event in (*events, "[DONE]")).encode())
        else:
            self.send(200, json.dumps({"usage": usage}).encode())

    def send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Keep quiet."""


class LocalServer:
    """The server as the harness sees one."""

    def __init__(self, url: str) -> None:
        self.url = url

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process()]


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.SETTLE_S", 0.0)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield LocalServer(f"http://127.0.0.1:{http.server_port}")
        http.shutdown()


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
    assert "SHORT" in text
    assert "completions-stream/2 TTFT" in text
    assert not report.is_ok
    written = write_results([report], {"cpu": "a", "cores": 2}, {}, tmp_path / "bench.json")
    rows = json.loads(written[0].read_text())["models"][0]["rows"]
    assert [(row["name"], row["verdict"]) for row in rows] == [
        ("completions-stream/2", "SHORT"),
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
        """Warm already."""

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


def test_a_failed_request_voids_the_measurement(server: LocalServer) -> None:
    with pytest.raises(LoadError, match="no such engine"):
        run_job(load(stream=False).job(server.url, "broken", seed=0))
