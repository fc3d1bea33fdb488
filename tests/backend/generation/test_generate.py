"""tritonlive/backend/generation/generate.py: tensors in, tensors out; without an engine."""

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput, WeightVersionSpan

Load = Callable[[str], ModuleType]
RequestOf = Callable[..., Any]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "text_input: give either"),
        ({"text_input": "a", "input_ids": [1]}, "text_input: give either text_input or input_ids, not both"),
        ({"text_input": "a", "sampling_parameters": "{"}, "sampling_parameters: is not JSON"),
        ({"text_input": "a", "sampling_parameters": "[]"}, "sampling_parameters: is a JSON list"),
        ({"text_input": "a", "sampling_parameters": '{"heat": 1}'}, "sampling_parameters: unknown 'heat'"),
        ({"text_input": "a", "sampling_parameters": '{"temperature": "hot"}'}, "temperature"),
        ({"text_input": "a", "sampling_parameters": '{"temperature": -1}'}, "sampling_parameters: temperature"),
        ({"text_input": "a", "sampling_parameters": '{"output_kind": 1}'}, "unknown 'output_kind'"),
        ({"text_input": "a", "sampling_parameters": '{"_eos_token_id": 1}'}, "unknown '_eos_token_id'"),
        (
            {"text_input": "a", "sampling_parameters": '{"structured_outputs": {"regex": "a", "_backend": "x"}}'},
            "unknown in structured_outputs: '_backend'",
        ),
        (
            {"text_input": "a", "stream": True, "exclude_input_in_output": False},
            "exclude_input_in_output: must be true",
        ),
        ({"input_ids": [1], "exclude_input_in_output": False}, "exclude_input_in_output: must be true"),
        ({"text_input": "a", "return_text": False}, "return_text: must be true"),
        ({"input_ids": [1], "return_text": False, "stream": True}, "return_text: must be true"),
        ({"input_ids": [1], "return_text": False, "return_logprobs": True}, "return_logprobs: has tokens as text"),
        (
            {"input_ids": [1], "return_prompt_token_logprobs": True},
            "return_prompt_token_logprobs: needs return_text to be false",
        ),
        (
            {"input_ids": [1], "return_text": False, "return_prompt_token_logprobs": True},
            'return_prompt_token_logprobs: needs "prompt_logprobs"',
        ),
        (
            {"input_ids": [1], "return_text": False, "sampling_parameters": '{"stop": "x"}'},
            "sampling_parameters: stop: strings need text",
        ),
        ({"input_ids": np.ones((2, 3), np.int32)}, r"input_ids: shape \[2, 3\], expected \[1, N\]"),
        ({"text_input": np.array([[b"a", b"b"]], dtype=object)}, "text_input: holds 2 values"),
        ({"text_input": np.array([[b"\xff"]], dtype=object)}, "text_input: is not UTF-8"),
    ],
)
def test_bad_input_is_named(load: Load, request_of: RequestOf, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(load("tensors").BadTensor, match=message):
        load("generation.generate").read_request(request_of(**tensors))


def test_numbers_may_come_as_strings_as_in_vllm_backend(load: Load, request_of: RequestOf) -> None:
    request = request_of(text_input="a", sampling_parameters='{"temperature": "0.5", "max_tokens": "3"}')
    params = load("generation.generate").read_request(request).params
    assert (params.temperature, params.max_tokens) == (0.5, 3)


def test_parameters_of_the_request_stand_in_for_sampling_parameters(load: Load, request_of: RequestOf) -> None:
    request = request_of('{"max_tokens": 3, "triton_enable_empty_final_response": true}', text_input="a")
    assert load("generation.generate").read_request(request).params.max_tokens == 3


@pytest.mark.parametrize(
    ("tensors", "prepends"),
    [
        ({"text_input": "a"}, True),
        ({"text_input": "a", "exclude_input_in_output": True}, False),
        ({"text_input": "a", "stream": True}, False),
        ({"input_ids": [1]}, False),
    ],
)
def test_when_the_prompt_is_part_of_the_text(
    load: Load, request_of: RequestOf, tensors: dict[str, Any], *, prepends: bool
) -> None:
    assert load("generation.generate").read_request(request_of(**tensors)).prepend_prompt is prepends


def output_of_two() -> RequestOutput:
    def sequence(index: int, tokens: list[int]) -> CompletionOutput:
        rows = [{t: Logprob(-1.0, 2, "x"), 9: Logprob(-0.5, 1, "y")} for t in tokens]
        spans = [WeightVersionSpan("v1", 0, 1), WeightVersionSpan("v2", 1, len(tokens))]
        return CompletionOutput(index, "ab"[:index], tokens, -2.0, rows, finish_reason="stop", weight_versions=spans)

    sequences = [sequence(0, [4, 5]), sequence(1, [6, 7, 8])]
    return RequestOutput("r", None, [1, 2, 3], None, sequences, finished=True, num_cached_tokens=2)


def test_outputs_become_tensors(load: Load) -> None:
    module = load("generation.generate")
    tensors = module.to_tensors(output_of_two(), frozenset(module.RETURNS), "prompt ")
    assert all(array.shape[0] == 1 for array in tensors.values()), "the batch dimension comes first"
    assert tensors["text_output"][0].tolist() == [b"prompt ", b"prompt a"]
    assert tensors["num_output_tokens"][0].tolist() == [2, 3]
    assert tensors["token_ids"][0].tolist() == [4, 5, 6, 7, 8]
    assert tensors["token_logprobs"][0].tolist() == [-1.0] * 5
    assert tensors["top_token_ids"][0].tolist() == [[9, 4], [9, 5], [9, 6], [9, 7], [9, 8]]
    assert tensors["top_logprobs"].shape == (1, 5, 2)
    assert tensors["prompt_token_ids"][0].tolist() == [1, 2, 3]
    assert tensors["num_cached_tokens"][0].tolist() == [2]
    assert tensors["weight_version"][0].tolist() == [b"v2"]


def test_spans_say_which_weights_made_which_tokens(load: Load) -> None:
    output = output_of_two()
    output.outputs[1].weight_versions = None  # still running
    first, second = load("generation.generate").to_tensors(output, frozenset())["weight_version_spans"][0]
    assert json.loads(first) == [
        {"version": "v1", "start": 0, "end": 1},
        {"version": "v2", "start": 1, "end": 2},
    ]
    assert second == b"[]"


def test_only_what_was_asked_for_is_sent(load: Load) -> None:
    tensors = load("generation.generate").to_tensors(output_of_two(), frozenset())
    assert set(tensors) == {"text_output", "weight_version", "weight_version_spans"}


def test_a_nan_logprob_is_null_in_json(load: Load) -> None:
    rows = [{1: Logprob(float("nan"), 1, "x"), 2: Logprob(float("-inf"), 2, "y")}]
    sequence = CompletionOutput(0, "x", [1], None, rows)
    assert load("generation.generate").logprobs_json(sequence).count("null") == 2
