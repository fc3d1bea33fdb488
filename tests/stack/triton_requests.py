"""Requests of Triton's gRPC clients, with the shapes of vllm_backend ([1]) or with a batch dimension ([1, 1])."""

import queue
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tritonlive.launch import Stack

COMMON = {"api_key": "test-inference-key"}
"""Tensors that every native request to the shared stack carries."""


def inputs_of(kind: Any = grpcclient.InferInput, *, batched: bool = False, **values: Any) -> list[Any]:
    """Tensors by name: str → BYTES, bool → BOOL, list → INT32. `kind`: the InferInput of a tritonclient."""
    inputs = []
    for name, value in {**COMMON, **values}.items():
        if isinstance(value, str | bytes):
            text = value.encode() if isinstance(value, str) else value
            array, datatype = np.array([text], dtype=np.object_), "BYTES"
        elif isinstance(value, bool):
            array, datatype = np.array([value]), "BOOL"
        else:
            array, datatype = np.array(value, dtype=np.int32), "INT32"
        if batched:
            array = array[np.newaxis]
        tensor = kind(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def generate(stack: Stack, model: str, body: dict[str, Any], path: str = "generate") -> httpx.Response:
    """POST to Triton's generate endpoint, or to generate_stream."""
    url = f"{stack.http_url}/v2/models/{model}/{path}"
    return httpx.post(url, json={**COMMON, **body}, timeout=60)


def stream_infer(
    url: str,
    model: str,
    inputs: list[grpcclient.InferInput],
    parameters: dict[str, Any] | None = None,
    outputs: list[str] | None = None,
) -> list[Any]:
    """Every response to one request on a gRPC stream that is closed at once, as vllm_backend's tests do it."""
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            model,
            inputs,
            parameters=parameters,
            outputs=[grpcclient.InferRequestedOutput(name) for name in outputs] if outputs else None,
        )
        client.stop_stream()  # waits for the last response
    return list(answers.queue)


def results_of(answers: list[Any]) -> list[grpcclient.InferResult]:
    """The answers, none of which may be an error."""
    assert answers
    for answer in answers:
        assert not isinstance(answer, InferenceServerException), str(answer)
    return answers


def text_of(results: list[grpcclient.InferResult]) -> str:
    """The text of all responses, of the first sequence."""
    return "".join(result.as_numpy("text_output").ravel()[0].decode() for result in results)
