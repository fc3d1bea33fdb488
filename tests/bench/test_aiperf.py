"""aiperf's command line, and what is made of its result."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.aiperf import Aiperf, figures_of
from bench.client import LoadError
from tests.bench.stand_ins import script

RUN = Aiperf("chat", concurrency=2, num_requests=2, prompt_tokens=8, max_tokens=3)
TIMES = {"avg": 30.0, "p50": 20.0, "p99": 40.0}
RESULT: dict[str, Any] = {
    "error_summary": [],
    "total_usage_completion_tokens": {"avg": 6.0},
    "benchmark_duration": {"avg": 2.0},
    "time_to_first_token": TIMES,
    "inter_chunk_latency": TIMES,
}
PROGRAM = """#!/bin/sh
[ -z "$HF_HUB_OFFLINE" ] || exit 9
while [ "$1" != --artifact-dir ]; do shift; done
cp "{result}" "$2/profile_export_aiperf.json"
"""


def test_the_server_counts_and_lengths_are_fixed() -> None:
    command = RUN.command(Path("/a/aiperf"), Path("/a/model"), "http://a", "m", seed=7)
    options = {name: command[at + 1] for at, name in enumerate(command[:-1]) if name.startswith("--")}
    assert (options["--isl"], options["--osl"], options["--endpoint-type"]) == ("8", "3", "chat")
    assert (options["--request-count"], options["--concurrency"], options["--random-seed"]) == ("2", "2", "7")
    assert "ignore_eos:true" in command
    assert "--use-server-token-count" in command


def test_a_result_becomes_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "wanted.json").write_text(json.dumps(RESULT))
    figures = RUN.run(
        script(tmp_path / "aiperf", PROGRAM.format(result=tmp_path / "wanted.json")), tmp_path, "http://a", "m", 0
    )
    assert (figures["tokens/s"], figures["ttft mean ms"], figures["ttft p50 ms"]) == (3.0, 30.0, 20.0)


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"(?s)status 3.*no server"):
        RUN.run(script(tmp_path / "aiperf", "#!/bin/sh\necho no server\nexit 3\n"), tmp_path, "http://a", "m", seed=0)


@pytest.mark.parametrize(
    "change", [{"error_summary": [{"message": "refused"}]}, {"total_usage_completion_tokens": {"avg": 5.0}}]
)
def test_failed_requests_and_missing_tokens_void_the_run(change: dict[str, Any]) -> None:
    with pytest.raises(LoadError):
        figures_of(RESULT | change, 6)
