"""Each target compares the two systems that it names, for the loads that it is for."""

import pytest

from bench.front_ends.comparison import ceilings, plan
from bench.front_ends.names import OURS, OURS_RUST, VLLM, VLLM_RUST
from bench.front_ends.stream_load import StreamLoad
from bench.front_ends.targets import rows_of
from bench.loads import Completions
from bench.measure import Figures, Load, Measurement, Result

STREAM = StreamLoad(kind="chat", concurrency=64, num_requests=2, max_tokens=4)


def result(load: Load, **figures: Figures) -> Result:
    """One run of each system; `_` in a name stands for `-`."""
    runs = {name.replace("_", "-"): [Measurement(each, 0.0, 0.0)] for name, each in figures.items()}
    first, *others = runs
    return Result(load, first, others[0] if others else "", runs)


def figures(tokens_per_s: float, ttft_ms: float, cpu_us: float) -> Figures:
    return {"tokens/s": tokens_per_s, "ttft mean ms": ttft_ms, "serving CPU per token µs": cpu_us}


def test_all_targets_of_a_stream() -> None:
    measured = result(
        STREAM,
        vllm=figures(1000, 1000, 200),
        vllm_rust=figures(1500, 200, 50),
        tritonlive=figures(900, 1200, 190),
        tritonlive_rust=figures(1400, 300, 110),
    )
    rows = {row.name: (row.result.theirs, row.reached.median, row.verdict) for row in rows_of([measured])}
    assert rows == {
        f"chat-stream/64 {OURS_RUST} CPU/token": (VLLM, 0.55, "MISSED"),
        f"chat-stream/64 {OURS_RUST}": (VLLM_RUST, pytest.approx(0.933, abs=0.001), "MISSED"),
        f"chat-stream/64 {OURS_RUST} TTFT": (VLLM, 0.3, "ok"),
        f"chat-stream/64 {OURS}": (VLLM, 0.9, "MISSED"),
        f"chat-stream/64 {OURS} TTFT": (VLLM, 1.2, "MISSED"),
    }


def test_whole_answers_have_a_throughput_only() -> None:
    load = Completions(concurrency=64, num_requests=2, max_tokens=4)
    both = {"vllm": {"tokens/s": 1000.0}, "tritonlive": {"tokens/s": 1000.0}, "tritonlive_rust": {"tokens/s": 1.0}}
    (row,) = rows_of([result(load, **both)])
    assert (row.result.ours, row.reached.median, row.verdict) == (OURS, 1.0, "ok")


def test_free_tokens_compare_our_two_front_ends() -> None:
    load = StreamLoad(label="ceiling 2 ms ", kind="chat", concurrency=64, num_requests=2, max_tokens=4)
    rows = rows_of([result(load, tritonlive=figures(5000, 1, 150), tritonlive_rust=figures(20_000, 1, 50))])
    assert [(row.goal.figure, row.verdict) for row in rows] == [
        ("tokens/s", "MISSED"),
        ("serving CPU per token µs", ""),
    ]


def test_a_system_that_was_not_measured_has_no_row() -> None:
    assert rows_of([result(STREAM, vllm=figures(1, 1, 1))]) == []


@pytest.mark.parametrize("concurrencies", [[64], [64, 128, 16]])
def test_the_plan_has_streams_and_whole_answers_of_both_kinds(concurrencies: list[int]) -> None:
    loads = plan(concurrencies)
    assert {load.concurrency for load in loads} == set(concurrencies)
    kinds = {load.name.partition("/")[0] for load in loads}
    assert kinds == {"completions", "completions-stream", "chat", "chat-stream"}
    assert len({load.name for load in loads}) == len(loads) == 4 * len(concurrencies)


def test_ceilings_are_told_apart_by_their_names() -> None:
    names = [load.name for loads in ceilings().values() for load in loads]
    assert len(set(names)) == len(names)
    assert all(name.startswith("ceiling ") for name in names)
