"""Rows 15, 42 and 50: what Triton's own clients may send wrongly. Answers name the field; nobody else is harmed."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from sync.control.client import ControlClient
from tests.answers import Complete
from tests.faults.native_fuzz import fuzz
from tests.stack.triton_requests import generate, inputs_of, stream_infer
from tritonlive.launch import Stack

MODELS = ("llm", "vllm_model")
NAMES = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(autouse=True)
def healthy(stack: Stack, control: ControlClient, complete: Complete) -> Iterator[None]:
    """Afterwards the same engine answers."""
    engines = stack.engine_core_pids
    yield
    complete()
    assert stack.engine_core_pids == engines


def sampling(**values: Any) -> dict[str, Any]:
    return {"text_input": "a", "sampling_parameters": json.dumps(values)}


@pytest.mark.row(15)
@pytest.mark.row(42)
@NAMES
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"sampling_parameters": "{}"}, "text_input"),
        ({"text_input": "a", "input_ids": [1]}, "text_input"),
        ({"text_input": "a", "sampling_parameters": "{"}, "sampling_parameters: is not JSON"),
        ({"text_input": "a", "sampling_parameters": '{"top_p": NaN}'}, "NaN is not a JSON number"),
        ({"text_input": "a", "sampling_parameters": "[" * 50_000}, "sampling_parameters: is not JSON"),
        ({"input_ids": [49152], "sampling_parameters": "{}"}, "input_ids"),
        ({"input_ids": [-1], "sampling_parameters": "{}"}, "input_ids"),
        (sampling(stop_token_ids=[10**6], min_tokens=2), "stop_token_ids"),
        (sampling(logit_bias={"-1": 1}), "logit_bias"),
        (sampling(allowed_token_ids=[49152]), "allowed_token_ids"),
        (sampling(trace_decode_token_ids=[]), "trace_decode_token_ids"),
        (sampling(max_tokens=10**12), "max_tokens: must be in"),
        (sampling(min_tokens=10**12, max_tokens=None), "min_tokens: must be in"),
        (sampling(seed=2**70), "seed: must be"),
        (sampling(n=16384), "n must be at most 1024"),
        (sampling(n="16384"), "n must be at most 1024"),
        (sampling(logprobs=10**6), "logprobs"),
        (sampling(stop=["x"] * 100_000), "stop: holds 100000 values, at most 128"),
        (sampling(bad_words=["x"] * 100_000), "bad_words: holds 100000 values"),
        (sampling(stop="\ud800"), "stop: holds text that UTF-8 cannot encode"),
        (sampling(extra_args={"a": [2**64]}), "extra_args.a[0]: must be an integer"),
        (sampling(heat=1), "unknown 'heat'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_value_is_named(stack: Stack, model: str, body: dict[str, Any], field: str) -> None:
    answer = generate(stack, model, body)
    assert answer.status_code == 400, answer.text
    assert field in answer.json()["error"]


@pytest.mark.row(15)
@NAMES
def test_a_wrong_type_or_size_is_named(stack: Stack, model: str) -> None:
    batched = model == "llm"
    wrong = {
        "text_input": np.array([1], np.int32),
        "input_ids": np.array([1, 2], np.int64),
        "stream": np.array([b"yes"], dtype=np.object_),
        "sampling_parameters": np.array([b"{}", b"{}"], dtype=np.object_),
    }
    for name, array in wrong.items():
        shaped = array[np.newaxis] if batched else array
        datatype = {"int32": "INT32", "int64": "INT64", "object": "BYTES"}[str(array.dtype)]
        tensor = grpcclient.InferInput(name, list(shaped.shape), datatype)
        tensor.set_data_from_numpy(shaped)
        (error,) = stream_infer(stack.grpc_url, model, [tensor, *inputs_of(batched=batched)])
        assert name in error.message()
    (error,) = stream_infer(stack.grpc_url, "llm", [_prompts("a", "b")], {"api_key": stack.api_key})
    assert "text_input: shape [2, 1], expected [1, N]" in error.message()


def _prompts(*texts: str) -> grpcclient.InferInput:
    tensor = grpcclient.InferInput("text_input", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
    return tensor


@pytest.mark.row(42)
@NAMES
def test_tritons_json_cuts_token_ids_and_grpc_does_not(stack: Stack, model: str) -> None:
    """Triton 2.51 cuts integers to 32 bits before the model sees them. If this fails, docs/triton-clients.md is old."""
    body = {"input_ids": [2**40 + 7], "return_prompt_token_ids": True, "max_tokens": 1}
    answer = generate(stack, model, body)
    assert answer.json()["prompt_token_ids"] == 7
    tensor = grpcclient.InferInput("input_ids", [1, 1] if model == "llm" else [1], "INT64")
    tensor.set_data_from_numpy(np.full(tensor.shape(), 2**40 + 7, np.int64))
    (error,) = stream_infer(stack.grpc_url, model, [tensor, *inputs_of(batched=model == "llm")])
    assert "input_ids" in error.message()


@pytest.mark.row(42)
@NAMES
def test_cumulative_logprob_is_a_number(stack: Stack, model: str) -> None:
    """NaN is no JSON, and strict readers refuse the whole answer."""
    body = {"text_input": "a", "return_cumulative_logprob": True, "return_logprobs": True, "max_tokens": 2, "n": 2}
    text = generate(stack, model, body).text
    assert "NaN" not in text
    assert all(value < 0 for value in json.loads(text)["cumulative_logprob"])
    assert json.loads(text)["logprobs"] == ["null", "null"]


@pytest.mark.row(50)
def test_hundreds_of_random_requests(stack: Stack) -> None:
    """The 5,000 of tests/faults/slow/test_native_fuzz.py, cut short."""
    http, grpc = stack.http_url.removeprefix("http://"), stack.grpc_url
    before = stack.triton_log.stat().st_size
    report = asyncio.run(fuzz(http, grpc, seed=11, first=0, count=300))
    assert not report.bad, "\n".join(report.bad)
    assert report.counts["grpc ok"] > 10
    with stack.triton_log.open(errors="replace") as log:
        log.seek(before)
        assert "Traceback" not in log.read()
