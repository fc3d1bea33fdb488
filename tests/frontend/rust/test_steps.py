"""Steps and requests in vLLM's own encoding."""

from typing import cast

import msgspec
import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from openai_frontend.rust.steps import (
    OutputHead,
    StepHead,
    decode_steps,
    failed_step,
    refused_call,
    request_id_of,
)
from tests.frontend.engine_request import engine_request

decoder = MsgpackDecoder(EngineCoreOutputs)


def encoded(value: object) -> bytes:
    return cast(bytes, MsgpackEncoder(size_threshold=1 << 62).encode(value)[0])


@pytest.mark.parametrize(("head", "struct"), [(StepHead, EngineCoreOutputs), (OutputHead, EngineCoreOutput)])
def test_positions_are_vllms(head: type[msgspec.Struct], struct: type[msgspec.Struct]) -> None:
    names = head.__struct_fields__
    assert names == struct.__struct_fields__[: len(names)]


def test_a_step_is_read_as_far_as_needed_and_passed_on_whole() -> None:
    outputs = [
        EngineCoreOutput("a", [1, 2]),
        EngineCoreOutput("b", [], finish_reason=FinishReason.LENGTH, stop_reason="x"),
    ]
    step = EngineCoreOutputs(outputs=outputs, scheduler_stats=SchedulerStats(), timestamp=1.5, weight_version="w2")
    announcement = EngineCoreOutputs(weight_version="w3")
    first, second = decode_steps(encoded([step, announcement]))
    assert [(output.request_id, output.finish_reason) for output in first.outputs] == [("a", None), ("b", 1)]
    assert (first.weight_version, first.scheduler_stats is None) == ("w2", False)
    assert first.of_engine(0) == encoded(step)
    assert (second.weight_version, second.outputs, second.scheduler_stats) == ("w3", [], None)


def test_a_step_gets_the_index_of_its_engine() -> None:
    (step,) = decode_steps(encoded([EngineCoreOutputs(outputs=[EngineCoreOutput("a", [7])], weight_version="w")]))
    decoded = decoder.decode(step.of_engine(3))
    assert (decoded.engine_index, decoded.outputs[0].new_token_ids, decoded.weight_version) == (3, [7], "w")


def test_fields_that_the_model_adds_do_not_disturb() -> None:
    (step,) = decode_steps(
        msgspec.msgpack.encode([[0, [["a", [1]]], None, 0.0, None, None, None, None, "w", ["added"]]])
    )
    assert [output.request_id for output in step.outputs] == ["a"]


def test_a_failed_generation_is_an_error_to_vllm() -> None:
    decoded = decoder.decode(failed_step("a", 2))
    (output,) = decoded.outputs
    assert (decoded.engine_index, output.request_id, output.finish_reason) == (2, "a", FinishReason.ERROR)
    assert output.new_token_ids == []


def test_a_refused_call_is_a_failure_to_vllm() -> None:
    answer = decoder.decode(refused_call(9, 0, "no")).utility_output
    assert answer is not None
    assert (answer.call_id, answer.failure_message, answer.result) == (9, "no", None)


def test_a_request_is_known_by_its_id() -> None:
    request = engine_request("r-1")
    assert request_id_of(encoded(request)) == "r-1"
    with pytest.raises(msgspec.MsgspecError):
        request_id_of(b"\xc1")
