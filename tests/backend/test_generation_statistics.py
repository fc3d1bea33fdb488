"""tritonlive/backend/generation_statistics.py: times and tokens of generations, however they end."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest

from tritonlive.backend.generation_statistics import GENERATION_DESCRIPTIONS, GenerationStatistics
from tritonlive.backend.vllm_seam.core import parent_request_id


class Setting:
    """Statistics whose clock the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.statistics = GenerationStatistics(clock=lambda: self.now)
        self.statistics.begin(lambda family: (1.0, 10.0))

    def add(self, request_id: str = "a", num_prompt_tokens: int = 3) -> None:
        self.statistics.added(request(request_id, [1] * num_prompt_tokens))

    def step(self, at: float, *outputs: EngineCoreOutput) -> None:
        step = EngineCoreOutputs(outputs=list(outputs), timestamp=at)
        self.now = at + 0.5  # outputs reach this process half a second later
        assert self.statistics.observe(step) is step

    def observed(self) -> dict[str, tuple[int, float]]:
        """Count and sum of the histograms that are not empty."""
        series = {name: histogram.series() for name, histogram in self.statistics.histograms.items()}
        return {name: (each.buckets["+Inf"], each.sum) for name, each in series.items() if each.buckets["+Inf"]}


@pytest.fixture
def setting() -> Setting:
    return Setting()


def request(request_id: str, prompt_token_ids: list[int], **fields: Any) -> EngineCoreRequest:
    return EngineCoreRequest(request_id, prompt_token_ids, None, SamplingParams(**fields), None, 0.0, None, None, None)


def events(queued: float, *scheduled: float) -> list[EngineCoreEvent]:
    begun = [EngineCoreEvent(EngineCoreEventType.SCHEDULED, at) for at in scheduled]
    return [EngineCoreEvent(EngineCoreEventType.QUEUED, queued), *begun]


def test_every_histogram_is_described(setting: Setting) -> None:
    assert setting.statistics.histograms.keys() == GENERATION_DESCRIPTIONS.keys()


def test_a_generations_times_and_tokens(setting: Setting) -> None:
    setting.add()
    setting.step(104.0, EngineCoreOutput("a", [1], events=events(101.0, 102.0, 103.0)))
    setting.step(106.0, EngineCoreOutput("a", [2, 3]))
    setting.step(107.0, EngineCoreOutput("a", [4], finish_reason=FinishReason.LENGTH))
    assert setting.observed() == {
        "time_to_first_token_seconds": (1, 4.5),
        "time_per_output_token_seconds": (2, 3.0),
        "e2e_request_latency_seconds": (1, 7.5),
        "request_queue_time_seconds": (1, 1.0),
        "request_inference_time_seconds": (1, 5.0),
        "request_prefill_time_seconds": (1, 2.0),
        "request_decode_time_seconds": (1, 3.0),
        "request_prompt_tokens": (1, 3),
        "request_generation_tokens": (1, 4),
        "request_params_n": (1, 1),
    }
    assert setting.statistics.num_ended["length"] == 1


def test_a_generation_that_fails_in_the_queue_has_waited_and_nothing_else(setting: Setting) -> None:
    setting.add()
    setting.step(105.0, EngineCoreOutput("a", [], finish_reason=FinishReason.ERROR, events=events(101.0)))
    observed = setting.observed()
    assert observed["request_queue_time_seconds"] == (1, 4.0)
    for name in ("inference", "prefill", "decode"):
        assert observed[f"request_{name}_time_seconds"] == (1, 0.0)
    assert "time_to_first_token_seconds" not in observed
    assert setting.statistics.num_ended["error"] == 1


def test_what_the_engine_refuses_has_no_times(setting: Setting) -> None:
    setting.add()
    setting.step(105.0, EngineCoreOutput("a", [], finish_reason=FinishReason.ERROR))
    assert setting.observed()["request_queue_time_seconds"] == (1, 0.0)
    assert setting.observed()["request_inference_time_seconds"] == (1, 0.0)


def test_an_engine_that_says_nothing_of_its_queue_leaves_those_times_out(setting: Setting) -> None:
    """With --disable-log-stats."""
    setting.add()
    setting.step(105.0, EngineCoreOutput("a", [1]))
    setting.step(106.0, EngineCoreOutput("a", [2], finish_reason=FinishReason.STOP))
    observed = setting.observed()
    assert observed["request_decode_time_seconds"] == (1, 1.0)
    assert not observed.keys() & {f"request_{name}_time_seconds" for name in ("queue", "inference", "prefill")}


def test_aborted_and_lost_generations_are_counted_and_forgotten(setting: Setting) -> None:
    setting.add("a")
    setting.add("b")
    setting.statistics.aborted(["a", "unknown"])
    setting.statistics.aborted(["a"])
    setting.statistics.engine_died("killed")
    setting.step(105.0, EngineCoreOutput("a", [1]), EngineCoreOutput("b", [1], finish_reason=FinishReason.STOP))
    assert {reason: num for reason, num in setting.statistics.num_ended.items() if num} == {"abort": 1, "error": 1}
    assert setting.observed() == {"request_params_n": (2, 2)}


def test_n_generations_are_one_request(setting: Setting) -> None:
    whole = request("chatcmpl-1", [1], n=3)
    InputProcessor.assign_request_id(whole)
    parent = ParentRequest(whole)
    for index in range(3):
        request_id, params = parent.get_child_info(index)
        child = EngineCoreRequest(
            request_id, [1], None, params, None, 0.0, None, None, None, external_req_id=whole.external_req_id
        )
        setting.statistics.added(child)
        assert parent_request_id(child) == whole.request_id
    for index in range(3):
        assert "request_params_n" not in setting.observed()
        request_id = f"{index}_{whole.request_id}"
        setting.step(105.0, EngineCoreOutput(request_id, [1], finish_reason=FinishReason.STOP))
    assert setting.observed()["request_params_n"] == (1, 3)


def test_an_id_that_looks_like_one_of_several_is_its_own() -> None:
    alone = request("7_mine", [1])
    InputProcessor.assign_request_id(alone)
    assert parent_request_id(alone) == alone.request_id


def test_a_new_engine_continues_the_counts(setting: Setting) -> None:
    setting.add()
    setting.step(105.0, EngineCoreOutput("a", [1], finish_reason=FinishReason.STOP))
    setting.statistics.begin(lambda family: (1.0,))
    assert setting.observed()["request_params_n"] == (1, 1)
