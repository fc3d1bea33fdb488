"""Row 50: 5,000 random requests to Triton's two ports, and the death of a model without an engine."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import answers
from tests.faults.native_fuzz import Report, fuzz
from tests.stack.triton_requests import inputs_of, results_of, stream_infer
from tritonlive.launch import Stack, StackConfig
from tritonlive.wire.machine import UNBATCHED_NAME
from tritonlive.wire.tensor_names import MODEL, VLLM_MODEL

COUNT, AT_ONCE = 5000, 500


@pytest.fixture(scope="module")
def fuzzed(stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(replace(stack_config, log_dir=tmp_path_factory.mktemp("fuzz-logs"))) as running:
        running.wait_ready(240)
        yield running


@pytest.mark.row(50)
def test_thousands_of_random_requests(fuzzed: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """None ends in an internal error or a hang, none is logged as a fault, and the engine is the same afterwards."""
    http, grpc = fuzzed.http_url.removeprefix("http://"), fuzzed.grpc_url
    engines, total = fuzzed.engine_core_pids, Report()
    for first in range(0, COUNT, AT_ONCE):
        report = asyncio.run(fuzz(http, grpc, seed=2026, first=first, count=AT_ONCE))
        total.counts += Counter(report.counts)
        total.bad += report.bad
        fuzzed.check()
        answers.complete(fuzzed, 60)
    with capsys.disabled():
        print(f"\n{total}")  # noqa: T201 - the counts are the result
    assert not total.bad, "\n".join(total.bad)
    assert total.counts.total() == COUNT
    assert fuzzed.engine_core_pids == engines
    assert "Traceback" not in Path(fuzzed.triton_log).read_text(errors="replace")


@pytest.mark.row(50)
def test_llm_goes_on_when_the_process_of_vllm_model_is_killed(fuzzed: Stack) -> None:
    """The engine is another process's child."""
    engines = fuzzed.engine_core_pids
    named = [each for each in fuzzed.triton.members() if each.name() == UNBATCHED_NAME]
    (process,) = [each for each in named if any(f"/{VLLM_MODEL}/" in part for part in each.cmdline())]
    process.kill()
    (error,) = stream_infer(fuzzed.grpc_url, VLLM_MODEL, inputs_of(text_input="a"))
    assert "not healthy" in str(error)
    inputs = inputs_of(batched=True, text_input="a")
    assert results_of(stream_infer(fuzzed.grpc_url, MODEL, inputs, {"max_tokens": 3}))
    answers.complete(fuzzed, 60)
    assert fuzzed.engine_core_pids == engines
