"""tritonlive/backend/generation/failure.py: which ends of a generation are errors."""

import pytest
from vllm.v1.engine import EngineCoreOutput, FinishReason

from tritonlive.backend.generation.failure import GenerationFailed, failure_of
from tritonlive.backend.tensors import Unavailable


@pytest.mark.parametrize("reason", [None, FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT])
def test_tokens_are_an_answer_however_they_end(reason: FinishReason | None) -> None:
    assert failure_of(EngineCoreOutput("r", [1], finish_reason=reason)) is None


@pytest.mark.parametrize("pools", [False, True])
def test_an_error_is_one(pools: bool) -> None:
    failed = failure_of(EngineCoreOutput("r", [], finish_reason=FinishReason.ERROR), pools=pools)
    assert isinstance(failed, GenerationFailed)


def test_an_aborted_one_that_pools_has_no_answer_and_may_be_tried_again() -> None:
    aborted = EngineCoreOutput("r", [], finish_reason=FinishReason.ABORT)
    assert isinstance(failure_of(aborted, pools=True), Unavailable)
    assert failure_of(EngineCoreOutput("r", [], finish_reason=FinishReason.STOP), pools=True) is None
