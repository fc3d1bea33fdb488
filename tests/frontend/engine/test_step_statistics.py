"""openai_frontend/engine/step_statistics.py: kept tokens are counted as vLLM counts tokens that arrive one by one.

The relay's outputs and the same outputs sent one by one go through vLLM's output processor and its loggers; both must
have been told the same.
"""

import copy
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import IterationStats, PrefillStats, SchedulerStats

from openai_frontend.engine.step_statistics import StepStatistics
from openai_frontend.vllm_seam import MsgpackDecoder, MsgpackEncoder, RelayedOutputs
from tritonlive.wire.kept_tokens import KeptStep, KeptTokens

Step = tuple[float, dict[str, EngineCoreOutput]]


class Logger:
    """Records what vLLM's loggers would observe."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.steps: list[int] = []
        self.num_tokens = 0
        self.num_ended = 0

    def record(self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any, engine_idx: int) -> None:
        if iteration_stats is not None:
            self.latencies += iteration_stats.inter_token_latencies_iter
            self.steps.append(iteration_stats.num_generation_tokens)
            self.num_tokens += iteration_stats.num_generation_tokens
            self.num_ended += len(iteration_stats.finished_requests)


class Frontend:
    """vLLM's output processor and loggers, used as AsyncLLM's output handler uses them."""

    def __init__(self, *request_ids: str) -> None:
        self.logger = Logger()
        self.processor = OutputProcessor(None, log_stats=True)
        self.statistics: Any = object.__new__(StepStatistics)
        assert issubclass(StepStatistics, StatLoggerManager)
        self.statistics.stat_loggers = [self.logger]
        self.answers: list[Any] = []
        queue: Any = type("Queue", (), {"put": staticmethod(self.answers.append)})
        for request_id in request_ids:
            params = SamplingParams(detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, max_tokens=9)
            request = EngineCoreRequest(
                request_id, [1], None, params, None, 0.0, None, None, None, external_req_id=request_id
            )
            self.processor.add_request(request, None, queue=queue)

    def receive(self, outputs: EngineCoreOutputs) -> None:
        payload = MsgpackEncoder(size_threshold=1 << 62).encode([outputs])[0]
        (arrived,) = MsgpackDecoder(list[RelayedOutputs]).decode(payload)
        self.statistics.arrived(arrived.kept, arrived.timestamp, self.processor)
        stats = IterationStats() if arrived.outputs else None
        self.processor.process_outputs(arrived.outputs, arrived.timestamp, stats)
        self.statistics.record(arrived.scheduler_stats, stats, None, 0)


def first(request_id: str) -> EngineCoreOutput:
    return EngineCoreOutput(request_id, [1], prefill_stats=PrefillStats(1, 1))


def relayed(outputs: list[EngineCoreOutput], at: float, kept: KeptTokens) -> Any:
    return RelayedOutputs(outputs=outputs, timestamp=at, kept=kept)


def one_by_one(*steps: tuple[float, list[EngineCoreOutput]]) -> Logger:
    """What vLLM's own server records."""
    ids = {output.request_id for _, outputs in steps for output in outputs}
    frontend = Frontend(*sorted(ids))
    for at, outputs in copy.deepcopy(steps):
        frontend.receive(EngineCoreOutputs(outputs=outputs, timestamp=at))
    return frontend.logger


def test_a_whole_answer_is_counted_as_its_steps() -> None:
    last = EngineCoreOutput("a", [4], finish_reason=FinishReason.LENGTH)
    expected = one_by_one(
        (1.0, [first("a")]), (2.0, [EngineCoreOutput("a", [2])]), (4.0, [EngineCoreOutput("a", [3])]), (7.0, [last])
    )
    frontend = Frontend("a")
    frontend.receive(EngineCoreOutputs(outputs=[first("a")], timestamp=1.0))
    kept = KeptTokens([KeptStep(2.0, 1, {1.0: 1}), KeptStep(4.0, 1, {2.0: 1})], {"a": (4.0, 2)})
    last.new_token_ids = [2, 3, 4]
    frontend.receive(relayed([last], 7.0, kept))
    logger = frontend.logger
    assert sorted(logger.latencies) == sorted(expected.latencies) == [1.0, 2.0, 3.0]
    assert sorted(logger.steps) == sorted(expected.steps) == [1, 1, 1, 1]
    assert (logger.num_tokens, logger.num_ended) == (expected.num_tokens, expected.num_ended) == (4, 1)
    assert frontend.answers[-1].outputs[0].token_ids == [1, 2, 3, 4]


def test_a_step_that_is_kept_in_part_is_one_step() -> None:
    end = EngineCoreOutput("b", [2], finish_reason=FinishReason.LENGTH)
    expected = one_by_one((1.0, [first("a"), first("b")]), (2.0, [EngineCoreOutput("a", [2]), end]))
    frontend = Frontend("a", "b")
    frontend.receive(EngineCoreOutputs(outputs=[first("a"), first("b")], timestamp=1.0))
    frontend.receive(relayed([end], 2.0, KeptTokens([KeptStep(2.0, 1, {1.0: 1})])))
    assert frontend.logger.steps == expected.steps == [2, 2]
    assert frontend.logger.latencies == expected.latencies == [1.0, 1.0]


def test_counts_may_come_before_their_tokens_and_tokens_alone() -> None:
    frontend = Frontend("a")
    frontend.receive(EngineCoreOutputs(outputs=[first("a")], timestamp=1.0))
    counts = relayed([], 2.5, KeptTokens([KeptStep(2.0, 2, {1.0: 1})]))
    counts.scheduler_stats = SchedulerStats()
    frontend.receive(counts)
    assert (frontend.logger.steps, frontend.logger.latencies) == ([1, 2], [1.0])
    frontend.receive(relayed([EngineCoreOutput("a", [2, 3])], 2.0, KeptTokens(is_counted=True)))
    assert (frontend.logger.steps, frontend.logger.latencies) == ([1, 2], [1.0]), "counted before"
    last = EngineCoreOutput("a", [4], finish_reason=FinishReason.LENGTH)
    frontend.receive(EngineCoreOutputs(outputs=[last], timestamp=5.0))
    assert (frontend.logger.steps, frontend.logger.latencies) == ([1, 2, 1], [1.0, 3.0])


@pytest.mark.parametrize("kept", [None, KeptTokens([], {"gone": (4.0, 2)})], ids=["nothing kept", "aborted meanwhile"])
def test_what_does_not_concern_a_running_request_changes_nothing(kept: KeptTokens | None) -> None:
    frontend = Frontend("a")
    frontend.receive(relayed([first("a")], 1.0, kept or KeptTokens()))
    assert (frontend.logger.steps, frontend.logger.latencies) == ([1], [])
