"""Which outputs wait for the end of a generation that is answered whole, and that none is lost or relabelled."""

from collections.abc import Callable
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.metrics.stats import PrefillStats

from tritonlive.backend.generation.front_end_generation import FrontEndBatch, FrontEndGeneration


@pytest.fixture
def generation() -> Callable[..., Any]:

    def build(kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY, **params: Any) -> Any:
        sender: Any = "sender"
        return FrontEndGeneration(FrontEndBatch(sender, 1), SamplingParams(output_kind=kind, **params))

    return build


def first() -> EngineCoreOutput:
    return EngineCoreOutput("a", [1], prefill_stats=PrefillStats())


def plain(*tokens: int) -> EngineCoreOutput:
    return EngineCoreOutput("a", list(tokens))


def last(*tokens: int) -> EngineCoreOutput:
    return EngineCoreOutput("a", list(tokens), finish_reason=FinishReason.LENGTH)


def run(generation: Any, *outputs: tuple[EngineCoreOutput, str]) -> list[tuple[list[int], str]]:
    """Sent tokens, and the version of their label."""
    sent = []
    for output, version in outputs:
        if not generation.keeps(output, version):
            sent += [(step.outputs[0].new_token_ids, step.weight_version) for step in generation.flush(output, version)]
            sent.append((output.new_token_ids, version))
    return sent


def test_plain_tokens_travel_with_the_last(generation: Callable[..., Any]) -> None:
    outputs = [first(), plain(2), plain(3, 4), plain(5), last(6)]
    assert run(generation(), *((output, "v1") for output in outputs)) == [([1], "v1"), ([2, 3, 4, 5, 6], "v1")]


@pytest.mark.parametrize(
    "made",
    [{"kind": RequestOutputKind.DELTA}, {"kind": RequestOutputKind.CUMULATIVE}, {"stop": ["x"], "detokenize": True}],
)
def test_who_looks_at_every_token_gets_every_token(generation: Callable[..., Any], made: dict[str, Any]) -> None:
    outputs = [first(), plain(2), plain(3), last(4)]
    sent = run(generation(**made), *((output, "v1") for output in outputs))
    assert sent == [([1], "v1"), ([2], "v1"), ([3], "v1"), ([4], "v1")]


def test_what_brings_more_than_tokens_does_not_wait(generation: Callable[..., Any]) -> None:
    events = EngineCoreOutput("a", [3], events=[])
    sent = run(generation(), *((output, "v1") for output in (first(), plain(2), events, plain(4), last(5))))
    assert sent == [([1], "v1"), ([2, 3], "v1"), ([4, 5], "v1")]


def test_tokens_keep_the_version_that_made_them(generation: Callable[..., Any]) -> None:
    steps = [(first(), "v1"), (plain(2), "v1"), (plain(3), "v2"), (plain(4), "v2"), (last(5), "v2")]
    assert run(generation(), *steps) == [([1], "v1"), ([2], "v1"), ([3], "v2"), ([4, 5], "v2")]
    steps = [(first(), "v1"), (plain(2), "v1"), (last(3), "v2")]
    assert run(generation(), *steps) == [([1], "v1"), ([2], "v1"), ([3], "v2")]


def test_a_commit_sends_what_the_weights_before_have_made(generation: Callable[..., Any]) -> None:
    running = generation()
    run(running, (first(), "v1"), (plain(2), "v1"))
    assert [(step.outputs[0].new_token_ids, step.weight_version) for step in running.flush()] == [([2], "v1")]
    assert list(running.flush()) == []
    assert run(running, (plain(3), "v2"), (last(4), "v2")) == [([3, 4], "v2")]
