"""Clients written for Triton's vllm_backend, with the tensors and words that its samples and tests use.

`vllm_model` takes tensors without a batch dimension, `llm` those with one; both are one engine.
"""

import asyncio
import json
import queue
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from tests.stack.conftest import wait_until
from tests.stack.triton_requests import generate, inputs_of, results_of, stream_infer, text_of
from tritonlive.launch import Stack

PROMPT = "In this example,"
GREEDY = {"temperature": "0", "top_p": "1", "max_tokens": "8"}  # strings, as vllm_backend's samples send numbers
MODELS = pytest.mark.parametrize(("model", "batched"), [("vllm_model", False), ("llm", True)])
NAMES = pytest.mark.parametrize("model", ["vllm_model", "llm"])
# Tokens that wait are sent together, so a busy machine could send eight at once.
STREAMED = {**GREEDY, "max_tokens": "200", "ignore_eos": "true"}
# The promise is one second; a busy machine may need more.
FREED_WITHIN_S = 15.0
EXCLUDE_ERROR = "When streaming, `exclude_input_in_output` = False is not allowed."


@MODELS
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_sampling_parameters_as_a_tensor_or_as_request_parameters(
    stack: Stack, model: str, *, batched: bool, stream: bool, as_tensor: bool
) -> None:
    tensors: dict[str, Any] = {"text_input": PROMPT, "stream": stream}
    if as_tensor:
        tensors["sampling_parameters"] = json.dumps(STREAMED)
    answers = stream_infer(stack.grpc_url, model, inputs_of(batched=batched, **tensors), STREAMED, ["text_output"])
    results = results_of(answers)
    assert len(results) > 1 if stream else len(results) == 1
    assert text_of(results).startswith(PROMPT) is not stream
    shape = results[0].as_numpy("text_output").shape
    assert shape == ((1, 1) if batched else (1,))


@pytest.mark.row(51)
@MODELS
def test_the_key_as_a_request_parameter(stack: Stack, model: str, *, batched: bool) -> None:
    """For clients that cannot add a tensor. A wrong one is refused."""
    inputs = [tensor for tensor in inputs_of(batched=batched, text_input=PROMPT) if tensor.name() != "api_key"]
    (refused,) = stream_infer(stack.grpc_url, model, inputs, {**GREEDY, "api_key": "wrong"})
    assert str(refused).count("api_key: missing or wrong") == 1
    results = results_of(stream_infer(stack.grpc_url, model, inputs, {**GREEDY, "api_key": stack.api_key}))
    assert text_of(results).startswith(PROMPT)


@pytest.mark.row(51)
@NAMES
def test_the_key_in_the_parameters_of_generate(stack: Stack, model: str) -> None:
    url = f"{stack.http_url}/v2/models/{model}/generate"
    answers = [
        httpx.post(url, json={"text_input": PROMPT, "parameters": {**GREEDY, "api_key": key}}, timeout=60)
        for key in ("wrong", stack.api_key)
    ]
    assert [answer.status_code for answer in answers] == [400, 200], answers[1].text
    assert "api_key: missing or wrong" in answers[0].json()["error"]


@MODELS
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("logprobs", [None, 0, 2])
@pytest.mark.parametrize("asked", [True, False, None])
def test_additional_outputs(
    stack: Stack, model: str, *, batched: bool, stream: bool, logprobs: int | None, asked: bool | None
) -> None:
    names = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
    parameters: dict[str, Any] = {**GREEDY, **({} if logprobs is None else {"logprobs": logprobs})}
    flags = {} if asked is None else {f"return_{name}": asked for name in names}
    inputs = inputs_of(
        batched=batched, text_input=PROMPT, stream=stream, sampling_parameters=json.dumps(parameters), **flags
    )
    results = results_of(stream_infer(stack.grpc_url, model, inputs, parameters))
    if not asked:
        assert all(result.as_numpy(name) is None for result in results for name in names)
        return
    reasons = [result.as_numpy("finish_reason").ravel()[0].decode() for result in results]
    assert reasons == ["None"] * (len(results) - 1) + ["length"]
    sums = [float(result.as_numpy("cumulative_logprob").ravel()[0]) for result in results]
    assert len(set(sums)) == len(results)
    counts = [int(result.as_numpy("num_output_tokens").ravel()[0]) for result in results]
    assert sum(counts) == 8
    assert min(counts) > 0
    for result, count in zip(results, counts, strict=True):
        assert 0 < int(result.as_numpy("num_input_tokens").ravel()[0]) <= len(PROMPT)
        rows = json.loads(result.as_numpy("logprobs").ravel()[0])
        if logprobs is None:
            assert rows is None
            continue
        assert len(rows) == count
        for row in rows:
            assert 1 <= len(row) <= logprobs + 1
            assert all(set(entry) == {"logprob", "rank", "decoded_token"} for entry in row.values())
            assert 1 in {entry["rank"] for entry in row.values()}


@pytest.mark.parametrize("exclude", [None, True, False])
def test_whether_the_prompt_is_in_the_text(stack: Stack, *, exclude: bool | None) -> None:
    tensors = {} if exclude is None else {"exclude_input_in_output": exclude}
    answers = stream_infer(stack.grpc_url, "vllm_model", inputs_of(text_input=PROMPT, **tensors), GREEDY)
    assert text_of(results_of(answers)).startswith(PROMPT) is not bool(exclude)


def test_a_stream_with_the_prompt_is_refused_in_vllm_backends_words(stack: Stack) -> None:
    tensors: dict[str, Any] = {"text_input": PROMPT, "stream": True, "exclude_input_in_output": False}
    (error,) = stream_infer(stack.grpc_url, "vllm_model", inputs_of(**tensors), GREEDY)
    assert error.message() == f"Error generating stream: {EXCLUDE_ERROR}"
    (error,) = stream_infer(stack.grpc_url, "llm", inputs_of(batched=True, **tensors), GREEDY)
    assert error.message() == f"{EXCLUDE_ERROR} [INVALID_ARG]"


def test_structured_outputs_as_json_in_json(stack: Stack) -> None:
    parameters = {"temperature": 0, "structured_outputs": json.dumps({"choice": ["Positive", "Negative"]})}
    inputs = inputs_of(
        text_input=PROMPT, exclude_input_in_output=True, sampling_parameters=json.dumps(parameters), stream=False
    )
    answers = stream_infer(stack.grpc_url, "vllm_model", inputs, parameters)
    assert text_of(results_of(answers)) in {"Positive", "Negative"}


def test_an_unknown_adapter_is_named(stack: Stack) -> None:
    inputs = inputs_of(text_input=PROMPT, sampling_parameters=json.dumps({**GREEDY, "lora_name": "bactrian"}))
    (error,) = stream_infer(stack.grpc_url, "vllm_model", inputs, GREEDY)
    assert "lora_name" in error.message()
    assert "bactrian" in error.message()


def test_tokens_and_other_outputs_beyond_vllm_backend(stack: Stack) -> None:
    tensors: dict[str, Any] = {
        "input_ids": [1, 2, 3],
        "return_text": False,
        "return_token_ids": True,
        "return_token_logprobs": True,
        "sampling_parameters": json.dumps({"max_tokens": 5, "n": 2, "seed": 1, "logprobs": 1}),
    }
    (plain,) = results_of(stream_infer(stack.grpc_url, "vllm_model", inputs_of(**tensors)))
    (batched,) = results_of(stream_infer(stack.grpc_url, "llm", inputs_of(batched=True, **tensors)))
    for name in ("token_ids", "num_output_tokens", "token_logprobs", "top_token_ids", "top_logprobs"):
        assert np.array_equal(plain.as_numpy(name)[np.newaxis], batched.as_numpy(name)), name
    assert plain.as_numpy("num_output_tokens").tolist() == [5, 5]


def test_many_requests_on_one_stream_keep_their_ids(stack: Stack) -> None:
    """As vllm_backend's sample client: one asyncio stream, all prompts at once, ids tell the answers apart."""

    async def run() -> dict[str, str]:
        texts: dict[str, str] = {}

        async def requests() -> Any:
            for number in range(40):
                yield {
                    "model_name": "vllm_model",
                    "inputs": inputs_of(
                        text_input=f"Number {number} is",
                        stream=number % 2 == 0,
                        sampling_parameters=json.dumps(GREEDY),
                        exclude_input_in_output=True,
                    ),
                    "outputs": [aioclient.InferRequestedOutput("text_output")],
                    "request_id": str(number),
                    "parameters": GREEDY,
                }

        async with aioclient.InferenceServerClient(stack.grpc_url) as client:
            async for result, error in client.stream_infer(requests()):
                assert error is None, error
                name = result.get_response().id
                texts[name] = texts.get(name, "") + result.as_numpy("text_output")[0].decode()
        return texts

    texts = asyncio.run(asyncio.wait_for(run(), 60))
    assert set(texts) == {str(number) for number in range(40)}
    for number in (0, 1):  # streamed and whole
        inputs = inputs_of(batched=True, text_input=f"Number {number} is", exclude_input_in_output=True)
        assert texts[str(number)] == text_of(results_of(stream_infer(stack.grpc_url, "llm", inputs, GREEDY)))


@MODELS
@pytest.mark.parametrize("stream", [True, False])
def test_a_cancelled_request_ends_in_the_engine(
    stack: Stack, metric: Callable[[str], float], model: str, *, batched: bool, stream: bool
) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(stack.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        parameters = json.dumps({"max_tokens": 1900, "n": 16, "ignore_eos": True})
        inputs = inputs_of(batched=batched, text_input=PROMPT, stream=stream, sampling_parameters=parameters)
        client.async_stream_infer(model, inputs)
        wait_until(lambda: metric("vllm:num_requests_running") > 0, 10)
        client.stop_stream(cancel_requests=True)
    wait_until(lambda: metric("vllm:num_requests_running") == 0, FREED_WITHIN_S)
    *_, last = answers.queue
    assert isinstance(last, InferenceServerException)
    assert last.status() == "StatusCode.CANCELLED"


@NAMES
@pytest.mark.parametrize(
    "body",
    [
        {"text_input": PROMPT, "parameters": {"stream": False, "temperature": 0, "max_tokens": 8}},
        {"text_input": PROMPT, "stream": False, "temperature": 0, "max_tokens": 8},
        {"text_input": PROMPT, "stream": False, "sampling_parameters": json.dumps(GREEDY)},
    ],
    ids=["parameters", "flat", "sampling_parameters"],
)
def test_curl_generate(stack: Stack, model: str, body: dict[str, Any]) -> None:
    answer = generate(stack, model, body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_name"] == model
    assert answer.json()["text_output"].startswith(PROMPT)


@NAMES
def test_curl_generate_stream(stack: Stack, model: str) -> None:
    body = {
        "text_input": PROMPT,
        "parameters": {"stream": True, "temperature": 0, "max_tokens": 200, "ignore_eos": True},
        "return_finish_reason": True,
    }
    lines = generate(stack, model, body, "generate_stream").text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert len(events) > 1
    assert [event["finish_reason"] for event in events] == ["None"] * (len(events) - 1) + ["length"]


def test_the_wrong_shape_is_refused_by_triton(stack: Stack) -> None:
    for model, batched in (("vllm_model", True), ("llm", False)):
        (error,) = stream_infer(stack.grpc_url, model, inputs_of(batched=batched, text_input=PROMPT))
        assert "unexpected shape for input 'text_input'" in error.message()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_infer_answers_once(stack: Stack, protocol: str) -> None:
    kind: Any = grpcclient if protocol == "grpc" else httpclient
    url = stack.grpc_url if protocol == "grpc" else stack.http_url.removeprefix("http://")
    with kind.InferenceServerClient(url) as client:

        def infer(model: str, **tensors: Any) -> Any:
            inputs = inputs_of(kind.InferInput, text_input=PROMPT, sampling_parameters=json.dumps(GREEDY), **tensors)
            return client.infer(model, inputs)

        answer = infer("llm_unary", return_finish_reason=True)
        assert answer.as_numpy("text_output")[0].decode().startswith(PROMPT)
        assert answer.as_numpy("finish_reason").tolist() == [b"length"]
        with pytest.raises(InferenceServerException, match="stream: this model answers once"):
            infer("llm_unary", stream=True)
        with pytest.raises(InferenceServerException, match="decoupled"):
            infer("vllm_model")


def test_the_http_client_asks_for_the_models(stack: Stack) -> None:
    with httpclient.InferenceServerClient(stack.http_url.removeprefix("http://")) as client:
        for model in ("llm", "vllm_model", "llm_unary"):
            assert client.is_model_ready(model)
            assert client.get_model_metadata(model)["name"] == model
