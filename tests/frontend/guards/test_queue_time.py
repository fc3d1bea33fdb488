"""openai_frontend/guards/queue_time.py: no negative times, whatever a request lacked when it ended."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats

from openai_frontend.guards.queue_time import QueueTimeProcessor
from openai_frontend.vllm_seam import change_class

QUEUED = EngineCoreEvent(EngineCoreEventType.QUEUED, 1000.0)
SCHEDULED = EngineCoreEvent(EngineCoreEventType.SCHEDULED, 1002.0)


def times_of(*outputs: tuple[float, EngineCoreOutput]) -> FinishedRequestStats:
    """What is recorded of a request with these outputs at these times."""
    processor = OutputProcessor(None, log_stats=True)
    change_class(processor, OutputProcessor, QueueTimeProcessor, "the output processor")
    params = SamplingParams(detokenize=False)
    request = EngineCoreRequest("a", [1], None, params, None, 0.0, None, None, None, external_req_id="a")
    queue: Any = []
    queue_like: Any = type("Queue", (), {"put": staticmethod(queue.append)})
    processor.add_request(request, None, queue=queue_like)
    stats = IterationStats()
    for at, output in outputs:
        processor.process_outputs([output], at, stats)
    (finished,) = stats.finished_requests
    return finished


@pytest.mark.parametrize(("events", "queued"), [([QUEUED], 5.0), (None, 0.0)], ids=["failed in the queue", "refused"])
def test_a_request_that_was_never_scheduled_has_no_times_but_the_queues(
    events: list[EngineCoreEvent] | None, queued: float
) -> None:
    failed = EngineCoreOutput("a", [], finish_reason=FinishReason.ERROR, events=events)
    finished = times_of((1005.0, failed))
    assert finished.queued_time == queued
    assert (finished.prefill_time, finished.inference_time, finished.decode_time) == (0.0, 0.0, 0.0)


def test_the_times_of_other_requests_are_vllms() -> None:
    finished = times_of(
        (1003.0, EngineCoreOutput("a", [1], events=[QUEUED, SCHEDULED])),
        (1004.0, EngineCoreOutput("a", [2], finish_reason=FinishReason.STOP)),
    )
    assert finished.queued_time == 2.0
    assert (finished.prefill_time, finished.inference_time, finished.decode_time) == (1.0, 2.0, 1.0)
