"""The harness against a server that answers at once: no stack, but a real socket and the real client process."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from bench.client import LoadError, run_job
from bench.loads import Load
from bench.measure import run_load
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


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield LocalServer(f"http://127.0.0.1:{http.server_port}")
        http.shutdown()


def load(*, stream: bool) -> Load:
    return Load("completions", stream=stream, concurrency=2, num_requests=4, max_tokens=TOKENS)


def test_a_load_is_measured_interleaved_and_reported(server: LocalServer, tmp_path: Path) -> None:
    said: list[str] = []
    row = run_load(load(stream=True), {"ours": server, "theirs": server}, "m", repeats=2, on_job=said.append)
    order = [line.split(", ")[1].split(":")[0] for line in said if "of 2" in line]
    assert order == ["ours", "theirs", "theirs", "ours"]
    outcome = row.by_system["ours"][0].outcome
    assert outcome.completion_tokens == 4 * TOKENS
    assert outcome.ttft_p50 is not None

    report = Report("tiny", "ours", "theirs", [row], {row.load.name: 1e9})
    console = Console(width=200, record=True)
    print_report(console, report)
    assert "SHORT" in console.export_text()
    assert not report.is_ok
    written = write_results([report], {"cpu": "a", "cores": 2}, {}, tmp_path / "bench.json")
    assert json.loads(written[0].read_text())["models"][0]["rows"][0]["verdict"] == "SHORT"
    assert all(path.stat().st_size for path in written)


def test_without_a_stream_there_is_no_ttft(server: LocalServer) -> None:
    outcome = run_job(load(stream=False).job(server.url, "m", seed=0))
    assert outcome.completion_tokens == 4 * TOKENS
    assert outcome.ttft_p50 is None


def test_a_failed_request_voids_the_measurement(server: LocalServer) -> None:
    with pytest.raises(LoadError, match="no such engine"):
        run_job(load(stream=False).job(server.url, "broken", seed=0))
