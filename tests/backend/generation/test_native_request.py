"""Native requests: parsing of their tensors, and refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tritonlive.backend.generation.native_request import read_request
from tritonlive.backend.tensors import BadTensor

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
def test_bad_input_is_named(request_of: RequestOf, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(BadTensor, match=message):
        read_request(request_of(**tensors))


def test_numbers_may_come_as_strings_as_in_vllm_backend(request_of: RequestOf) -> None:
    request = request_of(text_input="a", sampling_parameters='{"temperature": "0.5", "max_tokens": "3"}')
    params = read_request(request).params
    assert (params.temperature, params.max_tokens) == (0.5, 3)


def test_parameters_of_the_request_stand_in_for_sampling_parameters(request_of: RequestOf) -> None:
    request = request_of('{"max_tokens": 3, "triton_enable_empty_final_response": true}', text_input="a")
    assert read_request(request).params.max_tokens == 3


@pytest.mark.parametrize(
    ("tensors", "prepends"),
    [
        ({"text_input": "a"}, True),
        ({"text_input": "a", "exclude_input_in_output": True}, False),
        ({"text_input": "a", "stream": True}, False),
        ({"input_ids": [1]}, False),
    ],
)
def test_when_the_prompt_is_part_of_the_text(request_of: RequestOf, tensors: dict[str, Any], *, prepends: bool) -> None:
    assert read_request(request_of(**tensors)).prepend_prompt is prepends
