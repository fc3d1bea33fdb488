"""bench/parity/metrics.py: every count that differs is found, and times are compared with reason."""

import pytest

from bench.parity.metrics import Growth, Probe, cell, differences, parse, probes, series
from bench.parity.shape import MODEL, completion

PROBE = Probe("one", [completion("one")], frozenset({"vllm:iteration_tokens_total_count"}))
THEIRS = {
    "vllm:generation_tokens_total": 50.0,
    "vllm:iteration_tokens_total_count": 50.0,
    "vllm:e2e_request_latency_seconds_count": 1.0,
    "vllm:e2e_request_latency_seconds_sum": 0.5,
    "vllm:e2e_request_latency_seconds_bucket{le=1.0}": 1.0,
}


def found(**changed: float | None) -> list[str]:
    """The differences if our server's series, named by their ends, have other values."""
    ours = dict(THEIRS)
    for end, value in changed.items():
        (name,) = [name for name in THEIRS if name.endswith(end)]
        if value is None:
            del ours[name]
        else:
            ours[name] = value
    return differences(PROBE, Growth(2.0, dict(THEIRS)), Growth(2.0, ours))


def test_equal_counts_are_no_difference() -> None:
    assert found() == []


@pytest.mark.parametrize("value", [49.0, None])
def test_another_count_is_one(value: float | None) -> None:
    (line,) = found(generation_tokens_total=value)
    assert line.startswith("one: vllm:generation_tokens_total: 50 at vLLM")


def test_a_series_that_only_one_server_has_is_one() -> None:
    extra = {**THEIRS, "vllm:new_total": 1.0}
    assert len(differences(PROBE, Growth(2.0, THEIRS), Growth(2.0, extra))) == 1
    assert len(differences(PROBE, Growth(2.0, extra), Growth(2.0, THEIRS))) == 1


def test_times_may_differ_within_reason() -> None:
    assert found(latency_seconds_sum=1.9) == []
    assert len(found(latency_seconds_sum=-0.1)) == 1
    assert len(found(latency_seconds_sum=2.1)) == 1, "longer than the probe took"


def test_what_depends_on_the_batch_may_differ_and_not_fall() -> None:
    assert found(iteration_tokens_total_count=60.0) == []
    assert len(found(iteration_tokens_total_count=-1.0)) == 1


def test_a_cell_shows_one_value_of_equal_ones() -> None:
    theirs, ours = Growth(1.0, {"a": 3, "b_seconds_sum": 0.25}), Growth(1.0, {"a": 3, "b_seconds_sum": 0.5})
    assert cell("a", theirs, ours) == "3"
    assert cell("a", theirs, Growth(1.0)) == "3 / 0"
    assert cell("b_seconds_sum", theirs, ours) == "0.25 / 0.5"


def test_a_series_keeps_its_own_labels_only() -> None:
    assert series("vllm:x_total", {"engine": "0", "model_name": MODEL}) == "vllm:x_total"
    labels = {"engine": "0", "model_name": MODEL, "finished_reason": "stop"}
    assert series("vllm:x_total", labels) == "vllm:x_total{finished_reason=stop}"


def test_probes_have_names_of_their_own() -> None:
    names = [probe.name for probe in probes()]
    assert len(names) == len(set(names))


COUNTER = "# TYPE vllm:prompt_tokens{suffix} counter\nvllm:prompt_tokens_total 5\n"


@pytest.mark.parametrize(
    ("text", "content_type"),
    [
        (COUNTER.format(suffix="_total"), "text/plain"),
        (COUNTER.format(suffix="") + "# EOF\n", "application/openmetrics-text"),
    ],
)
def test_a_counter_is_one_in_both_formats(text: str, content_type: str) -> None:
    (family,) = parse(text, content_type)
    assert (family.type, [(sample.name, sample.value) for sample in family.samples]) == (
        "counter",
        [("vllm:prompt_tokens_total", 5)],
    )
