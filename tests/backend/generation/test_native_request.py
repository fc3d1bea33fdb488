"""Native requests: parsing of their tensors, and refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.triton_stand_in import Request, tensor
from tritonlive.backend.generation.native_request import read_request
from tritonlive.backend.tensors import RequestError

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
            "When streaming, `exclude_input_in_output` = False is not allowed",
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
        (
            {"text_input": "a", "sampling_parameters": '{"seed": 1180591620717411303424}'},
            "seed: must be an integer of at",
        ),
        (
            {"text_input": "a", "sampling_parameters": '{"seed": "1180591620717411303424"}'},
            "sampling_parameters: .*seed",
        ),
        (
            {"text_input": "a", "sampling_parameters": '{"max_tokens": "1000000000000"}'},
            r"max_tokens: must be in \[1, ",
        ),
        ({"text_input": "a", "sampling_parameters": '{"top_p": NaN}'}, "sampling_parameters: is not JSON: NaN"),
        (
            {"text_input": "a", "sampling_parameters": '{"stop": "\\ud800"}'},
            "stop: holds text that UTF-8 cannot encode",
        ),
        (
            {"text_input": "a", "sampling_parameters": '{"n": 1, "stop": ' + "[" * 70 + "]" * 70 + "}"},
            "nested more than",
        ),
        ({"text_input": "a", "sampling_parameters": "[" * 100_000}, "sampling_parameters: is not JSON"),
        ({"text_input": "a", "sampling_parameters": " " * 2**20 + "{}"}, "sampling_parameters: .* characters, at most"),
        ({"text_input": "a", "sampling_parameters": '{"structured_outputs": "{"}'}, "structured_outputs: is not JSON"),
        ({"input_ids": np.ones((2, 3), np.int32)}, r"input_ids: shape \[2, 3\], expected \[1, N\]"),
        ({"text_input": np.array([[b"a", b"b"]], dtype=object)}, "text_input: holds 2 values"),
        ({"text_input": np.array([[b"\xff"]], dtype=object)}, "text_input: is not UTF-8"),
    ],
)
def test_bad_input_is_named(request_of: RequestOf, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_request(request_of(**tensors))


def test_numbers_may_come_as_strings_as_in_vllm_backend(request_of: RequestOf) -> None:
    request = request_of(text_input="a", sampling_parameters='{"temperature": "0.5", "max_tokens": "3"}')
    params = read_request(request).params
    assert (params.temperature, params.max_tokens) == (0.5, 3)


def test_the_key_among_the_request_parameters_is_no_sampling_parameter() -> None:
    request = Request('{"api_key": "secret", "max_tokens": 3}', text_input=tensor("a"))
    assert read_request(request).params.max_tokens == 3
    with pytest.raises(RequestError, match="unknown 'api_keys'"):
        read_request(Request('{"api_keys": "secret"}', text_input=tensor("a")))


def test_structured_outputs_may_come_as_json_in_json_as_in_vllm_backend(request_of: RequestOf) -> None:
    request = request_of(text_input="a", sampling_parameters='{"structured_outputs": "{\\"choice\\": [\\"b\\"]}"}')
    outputs = read_request(request).params.structured_outputs
    assert outputs is not None
    assert outputs.choice == ["b"]


@pytest.mark.parametrize(("asked", "sent"), [("{}", 0), ('{"logprobs": 3}', 3)])
def test_cumulative_logprob_needs_no_logprobs_of_the_client(request_of: RequestOf, asked: str, sent: int) -> None:
    request = request_of(text_input="a", sampling_parameters=asked, return_cumulative_logprob=True)
    checked = read_request(request)
    assert (checked.params.logprobs, checked.wants_logprobs) == (sent, sent > 0)


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
