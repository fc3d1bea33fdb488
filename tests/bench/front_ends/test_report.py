"""The table, the results file and the picture have each system's cost by kind of process."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.front_ends.report import Report, print_report, summary, write
from bench.front_ends.stream_load import StreamLoad
from bench.measure import Measurement, Result

LOAD = StreamLoad(kind="completions", concurrency=64, num_requests=10, max_tokens=100)
FIGURES = {"completion tokens": 1000.0, "tokens/s": 500.0, "ttft mean ms": 30.0, "serving CPU per token µs": 100.0}
RUNS = {
    "vllm": [Measurement(FIGURES, 0.3, 0.1, {"front end": each, "engine": 0.2}) for each in (0.1, 0.3, 0.2)],
    "tritonlive-rust": [Measurement(FIGURES, 0.3, 0.1, {"bridge": 0.02, "vllm-rs": 0.03, "engine": 0.2})] * 3,
}
RESULT = Result(LOAD, "vllm", "tritonlive-rust", RUNS)


def test_costs_are_medians_by_token_and_by_request() -> None:
    values = summary(RESULT, "vllm")
    assert values["CPU µs per token"] == pytest.approx({"front end": 200.0, "engine": 200.0})
    assert values["CPU µs per request"] == pytest.approx({"front end": 20_000.0, "engine": 20_000.0})
    assert values["serving µs per token"] == pytest.approx(200.0)
    assert values["serving µs per request"] == pytest.approx(20_000.0)
    assert values["tokens/s per core"] == pytest.approx(5000.0)
    assert values["requests/s"] == pytest.approx(5.0)


def test_the_engine_is_not_part_of_serving() -> None:
    assert summary(RESULT, "tritonlive-rust")["serving µs per token"] == pytest.approx(50.0)


def test_table_file_and_picture(tmp_path: Path) -> None:
    report = Report([RESULT], {"chat-stream/64": "no server"})
    console = Console(width=240, record=True)
    print_report(console, report)
    text = console.export_text()
    assert "completions-stream/64 tritonlive-rust CPU/token" in text
    assert "MISSED" in text
    assert "FAILED" in text
    written = write(report, {"cpu": "a", "cores": 2}, {"quick": True}, tmp_path / "front_ends.json")
    content = json.loads(written[0].read_text())
    assert [load["name"] for load in content["loads"]] == ["completions-stream/64"]
    assert content["failures"] == {"chat-stream/64": "no server"}
    assert {row["system"] for row in content["targets"]} == {"tritonlive-rust"}
    assert [path.suffix for path in written] == [".json", ".png"]
    assert all(path.stat().st_size for path in written)


def test_without_results_there_is_no_picture(tmp_path: Path) -> None:
    assert [path.suffix for path in write(Report(), {}, {}, tmp_path / "front_ends.json")] == [".json"]
