"""The load generator's command line, and what is made of its result."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.bench_serve import BenchServe, figures_of
from bench.client import LoadError
from tests.bench.stand_ins import script

SERVE = BenchServe("chat", concurrency=2, num_requests=2, prompt_tokens=8, max_tokens=3)
RESULT: dict[str, Any] = {
    "duration": 2.0,
    "failed": 0,
    "total_output_tokens": 6,
    "output_throughput": 3.0,
    "request_throughput": 1.0,
    "median_e2el_ms": 50.0,
    "p99_e2el_ms": 60.0,
    "ttfts": [0.01, 0.03],
    "itls": [[0.1, 0.2], [0.3, 0.4]],
}
GENERATOR = """#!/bin/sh
while [ "$1" != --result-dir ]; do shift; done
cp "{result}" "$2/result.json"
"""


def test_prompts_are_text_and_lengths_are_fixed() -> None:
    command = SERVE.command(Path("/a/vllm-rs"), Path("/a/model"), "http://a", "m", seed=7)
    assert command[:3] == ["/a/vllm-rs", "bench", "serve"]
    options = {name: command[at + 1] for at, name in enumerate(command[:-1]) if name.startswith("--")}
    assert options["--backend"] == "openai-chat"
    assert (options["--random-input-len"], options["--random-output-len"]) == ("8", "3")
    assert (options["--num-prompts"], options["--max-concurrency"], options["--seed"]) == ("2", "2", "7")
    assert "--ignore-eos" in command
    assert "--prompt-token-ids" not in command


def test_a_result_becomes_figures(tmp_path: Path) -> None:
    (tmp_path / "wanted.json").write_text(json.dumps(RESULT))
    binary = script(tmp_path / "vllm-rs", GENERATOR.format(result=tmp_path / "wanted.json"))
    figures = SERVE.run(binary, tmp_path, "http://a", "m", seed=0)
    assert figures["tokens/s"] == 3.0
    assert figures["completion tokens"] == 6
    assert figures["events/token"] == 1.0
    assert 0 <= figures["client share of a core"] < 1


@pytest.mark.parametrize(
    ("starts_with_role", "first_ms", "gap_ms"), [(True, (10 + 100 + 30 + 300) / 2, 300.0), (False, 20.0, 250.0)]
)
def test_a_chats_first_event_is_not_a_token(starts_with_role: bool, first_ms: float, gap_ms: float) -> None:
    figures = figures_of(RESULT, 6, starts_with_role=starts_with_role)
    assert [figures["ttft mean ms"], figures["ttft p50 ms"]] == pytest.approx([first_ms, first_ms])
    assert figures["gap p50 ms"] == pytest.approx(gap_ms)


def test_a_generator_that_fails_says_why(tmp_path: Path) -> None:
    binary = script(tmp_path / "vllm-rs", "#!/bin/sh\necho no server >&2\nexit 3\n")
    with pytest.raises(LoadError, match=r"(?s)status 3.*no server"):
        SERVE.run(binary, tmp_path, "http://a", "m", seed=0)


def test_without_a_result_the_load_has_failed(tmp_path: Path) -> None:
    with pytest.raises(LoadError):
        SERVE.run(script(tmp_path / "vllm-rs", "#!/bin/sh\n"), tmp_path, "http://a", "m", seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"failed": 1, "failed_requests": ["refused"]}, "refused"), ({"total_output_tokens": 5}, "5")],
)
def test_failed_requests_and_missing_tokens_void_the_run(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        figures_of(RESULT | change, 6, starts_with_role=True)
