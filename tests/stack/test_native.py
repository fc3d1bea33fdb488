"""Triton's own protocols: HTTP generate and generate_stream, tritonclient over HTTP and gRPC."""

import json
import queue
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tritonlive.launch import Stack

Generate = Callable[[dict[str, Any]], httpx.Response]
GREEDY = json.dumps({"temperature": 0, "max_tokens": 6, "logprobs": 2})


def test_generate_gives_what_was_asked_for(triton: Generate) -> None:
    answer = triton(
        {
            "input_ids": [1, 2, 3],
            "sampling_parameters": GREEDY,
            "return_finish_reason": True,
            "return_token_ids": True,
            "return_token_logprobs": True,
            "return_prompt_token_ids": True,
            "return_num_input_tokens": True,
            "return_logprobs": True,
            "return_cumulative_logprob": True,
        }
    ).json()
    assert answer["finish_reason"] == "length"
    assert answer["prompt_token_ids"] == [1, 2, 3]
    assert answer["num_input_tokens"] == 3
    assert answer["num_output_tokens"] == 6
    assert len(answer["token_ids"]) == len(answer["token_logprobs"]) == 6
    assert sum(answer["token_logprobs"]) == pytest.approx(answer["cumulative_logprob"], abs=1e-4)
    assert json.loads(answer["weight_version_spans"])[0]["end"] == 6
    listed = [
        row[str(token)]["logprob"]
        for token, row in zip(answer["token_ids"], json.loads(answer["logprobs"]), strict=False)
    ]
    assert listed == pytest.approx(answer["token_logprobs"])


def test_the_prompt_is_part_of_the_text_unless_excluded(triton: Generate) -> None:
    body = {"text_input": "Hello there", "sampling_parameters": GREEDY}
    with_prompt = triton(body).json()["text_output"]
    assert with_prompt == "Hello there" + triton({**body, "exclude_input_in_output": True}).json()["text_output"]


def test_generate_stream_sends_what_is_new(stack: Stack, triton: Generate) -> None:
    # Tokens that wait are sent together: so many that a busy machine sends more than one message, too.
    parameters = json.dumps({"temperature": 0, "max_tokens": 200, "ignore_eos": True})
    body = {"text_input": "Hello there", "sampling_parameters": parameters, "exclude_input_in_output": True}
    whole = triton(body).json()["text_output"]
    url = f"{stack.http_url}/v2/models/llm/generate_stream"
    with httpx.stream("POST", url, json={**body, "stream": True, "api_key": stack.api_key}, timeout=60) as answer:
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    assert len(events) > 1
    assert "".join(event["text_output"] for event in events) == whole


def grpc_inputs(**values: Any) -> list[tritonclient.grpc.InferInput]:
    inputs = []
    for name, value in values.items():
        array, kind = (
            (np.array([[value.encode()]], dtype=np.object_), "BYTES")
            if isinstance(value, str)
            else (np.array([[value]]), "BOOL")
            if isinstance(value, bool)
            else (np.array([value], dtype=np.int32), "INT32")
        )
        tensor = tritonclient.grpc.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


@pytest.mark.parametrize("stream", [False, True])
def test_grpc_client(stack: Stack, triton: Generate, *, stream: bool) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(stack.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            "llm",
            grpc_inputs(
                input_ids=[1, 2, 3],
                sampling_parameters=GREEDY,
                stream=stream,
                return_token_ids=True,
                api_key=stack.api_key,
            ),
            enable_empty_final_response=True,
        )
        tokens: list[int] = []
        final = False
        while not final:
            answer = answers.get(timeout=60)
            assert not isinstance(answer, InferenceServerException), answer
            if (ids := answer.as_numpy("token_ids")) is not None:
                tokens += ids[0].tolist()
            final = answer.get_response().parameters["triton_final_response"].bool_param
    body = {"input_ids": [1, 2, 3], "sampling_parameters": GREEDY, "return_token_ids": True}
    assert tokens == triton(body).json()["token_ids"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"sampling_parameters": "{}"}, 400, "text_input"),
        ({"text_input": "a", "input_ids": [1]}, 400, "text_input"),
        ({"text_input": "a", "sampling_parameters": "{"}, 400, "sampling_parameters"),
        ({"text_input": "a", "sampling_parameters": '{"temperature": -1}'}, 400, "sampling_parameters: temperature"),
        ({"text_input": "a", "sampling_parameters": '{"logprobs": 1000000}'}, 400, "sampling_parameters"),
        ({"text_input": "a", "sampling_parameters": '{"n": 1000000000}'}, 400, "sampling_parameters"),
        ({"input_ids": [1, 999_999], "sampling_parameters": "{}"}, 400, "input_ids"),
        ({"input_ids": [1] * 3000, "sampling_parameters": "{}"}, 400, "input_ids"),
        ({"text_input": "", "sampling_parameters": "{}"}, 400, "text_input"),
        ({"engine_channel": "nobody", "engine_request": "x"}, 400, "engine_channel"),
    ],
)
def test_bad_tensors_are_named_and_harm_nobody(triton: Generate, body: dict, status: int, message: str) -> None:
    answer = triton(body)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text
    assert triton({"control_operation": "health"}).status_code == 200


def test_an_engine_request_of_rubbish_is_refused(stack: Stack) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(stack.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer("llm", grpc_inputs(engine_channel="rubbish", api_key=stack.api_key))
        assert answers.get(timeout=30).as_numpy("engine_outputs") is not None, "the channel says that it is open"
        payload = tritonclient.grpc.InferInput("engine_request", [1, 1], "BYTES")
        payload.set_data_from_numpy(np.array([[bytes([0x93, 1, 2, 3])]], dtype=np.object_))
        client.async_stream_infer("llm", [*grpc_inputs(engine_channel="rubbish"), payload])
        error = answers.get(timeout=30)
        client.stop_stream(cancel_requests=True)
    assert "engine_request: is not an EngineCoreRequest" in str(error)
