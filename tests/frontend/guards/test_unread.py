"""openai_frontend/guards/unread.py, in vLLM's own queue."""

import asyncio

import pytest
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from openai_frontend.guards.unread import LimitedQueue, size_of
from openai_frontend.vllm_seam import RequestOutputCollector, change_class


def result(num_tokens: int, num_candidates: int = 0) -> RequestOutput:
    row = dict.fromkeys(range(num_candidates), Logprob(0.0))
    output = CompletionOutput(0, "x", [1] * num_tokens, None, [row] * num_tokens if num_candidates else None)
    return RequestOutput("r", None, None, None, [output], finished=False)


def queue(kind: RequestOutputKind, seen: list[LimitedQueue]) -> LimitedQueue:
    made = change_class(RequestOutputCollector(kind, "r"), RequestOutputCollector, LimitedQueue, "the queue")
    made.limit_unread(10, seen.append)
    return made


def test_candidates_of_logprobs_count() -> None:
    assert size_of(result(3)) == 3
    assert size_of(result(3, 20)) == 63


async def test_a_client_that_does_not_read_is_reported_once() -> None:
    seen: list[LimitedQueue] = []
    filled = queue(RequestOutputKind.DELTA, seen)
    for _ in range(11):
        filled.put(result(1))
    await asyncio.sleep(0)
    assert seen == []  # the first is being read
    for _ in range(30):
        filled.put(result(1))
    await asyncio.sleep(0)
    assert seen == [filled]


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY])
async def test_a_client_that_reads_may_have_any_number(kind: RequestOutputKind) -> None:
    seen: list[LimitedQueue] = []
    filled = queue(kind, seen)
    for _ in range(20):
        filled.put(result(5))
        filled.put(result(5))
        assert filled.get_nowait() is not None
    await asyncio.sleep(0)
    assert seen == []
