"""bench/soak: the verdict, and that every kind of request is one that the server could take."""

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.soak import __main__ as main
from bench.soak import picture, samples
from bench.soak.load import CHAT, KINDS, Answer, body_of
from bench.soak.report import Kill, Run, percentiles
from bench.soak.samples import Sample


def sampled(pid: int, rss_mib: list[float], *, descriptors: int = 10) -> list[Sample]:
    """One sample a second."""
    return [Sample(at, "stub", pid, rss, rss, descriptors, 4) for at, rss in enumerate(rss_mib)]


def test_growth_counts_after_the_warm_up_of_each_process() -> None:
    run = Run(warm_up_s=50)
    run.samples += sampled(1, [100.0 + at for at in range(50)] + [150.0] * 50)  # grows while it warms up
    assert run.verdict() == []
    run.samples += sampled(2, [100.0] * 50 + [100.0 + 4 * at for at in range(50)])
    (wrong, _) = run.verdict()
    assert wrong == "stub 2: rss_mib grew from 118 to 278"


def test_a_process_that_lived_too_short_is_not_judged() -> None:
    run = Run(warm_up_s=50)
    run.samples += sampled(1, [100.0 * at for at in range(52)])
    assert run.verdict() == []


def test_errors_belong_to_a_kill_while_the_stack_recovers_and_only_then() -> None:
    run = Run(warm_up_s=1, kills=[Kill("stub", at_s=100, recovered_s=20)])
    run.answers += [
        Answer("whole", 95, 6, "503"),
        Answer("whole", 119, 5, "ReadError"),
        Answer("whole", 130, 1, "answered"),
    ]
    assert run.verdict() == []
    run.answers += [Answer("whole", 121, 1, "503"), Answer("stream", 90, 5, "cut off")]
    run.pushes += [Answer("push", 99, 4, "SyncTimeoutError"), Answer("push", 140, 2, "NotServingError: dirty")]
    assert run.verdict() == [
        "1 x whole: 503, outside a kill",
        "1 x stream: cut off, outside a kill",
        "1 x push: NotServingError: dirty, outside a kill",
    ]


def test_a_kill_without_recovery_and_a_crash_are_wrong() -> None:
    run = Run(warm_up_s=1, kills=[Kill("stub", at_s=100, recovered_s=None)], crashes=["core dump: core.7"])
    run.answers.append(Answer("whole", 500, 1, "503"))
    assert run.verdict() == ["stub killed at 100 s: did not come back", "core dump: core.7"]


def test_the_results_and_the_picture_can_be_written(tmp_path: Path) -> None:
    run = Run(warm_up_s=1, samples=sampled(1, [1.0] * 9), shared_memory_mib=[(0.0, 1.0), (5.0, 2.0)])
    run.answers += [
        Answer("whole", 1, 0.5, "answered"),
        Answer("whole", 2, 1.5, "answered"),
        Answer("whole", 2, 1, "503"),
    ]
    run.kills.append(Kill("stub", 5, 1))
    written = json.loads(json.dumps(run.as_json()))
    assert written["statuses"] == {"whole": {"answered": 2, "503": 1}}
    assert written["latency"] == {"whole": [1.5, 1.5]}
    assert [answer["outcome"] for answer in written["answers"]] == ["503"], "those that failed"
    assert picture.draw(run, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000


@contextmanager
def interrupted_stack(*_: object) -> Iterator[None]:
    """Stands for SoakStack; the signal comes while it starts."""
    os.kill(os.getpid(), signal.SIGTERM)
    yield


def test_an_interrupted_run_writes_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "SoakStack", interrupted_stack)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        result = CliRunner().invoke(main.app, ["--out", str(tmp_path)])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert result.exit_code == 1
    assert "WRONG: interrupted" in result.output
    assert json.loads((tmp_path / "soak.json").read_text())["verdict"] == ["interrupted"]
    assert (tmp_path / "soak.png").exists()


def test_percentiles() -> None:
    assert percentiles([float(value) for value in range(100)]) == [50.0, 99.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_request_is_the_same_for_the_same_seed(kind: str) -> None:
    first, second = (body_of(kind, random.Random(3), "m") for _ in range(2))  # noqa: S311 - no secret
    assert first == second
    path, body = first
    assert ("messages" in body) == (path == CHAT)
    assert body["max_tokens"] >= 8


def test_processes_are_sampled_by_role() -> None:
    own = [sample for sample in samples.take(os.getpid(), 1.5) if sample.pid == os.getpid()]
    assert [sample.role for sample in own] == ["launcher"]
    assert own[0].rss_mib > 10
    assert own[0].descriptors > 0
    assert samples.shared_memory_mib() >= 0
