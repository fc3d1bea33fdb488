"""Triton's own ports: inference needs a key there too, and administration is closed to everyone."""

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from sync import Rollouts
from sync.errors import RefusedError
from tritonlive.launch import Stack

from . import raw_requests
from .conftest import MODEL

PARAMETERS = json.dumps({"max_tokens": 2, "temperature": 0})
PROMPT = {"text_input": "Hello", "sampling_parameters": PARAMETERS}
WRONG_KEYS = [None, "", "wrong", "test-inference-key,", "test-inference-ke"]

CLOSED_HTTP = [
    ("POST", "/v2/repository/index", {}),
    ("POST", "/v2/repository/models/llm/unload", {}),
    ("POST", "/v2/repository/models/llm/load", {}),
    ("GET", "/v2/systemsharedmemory/status", None),
    ("POST", "/v2/systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 4}),
    ("POST", "/v2/systemsharedmemory/unregister", {}),
    ("GET", "/v2/cudasharedmemory/status", None),
    ("POST", "/v2/cudasharedmemory/region/x/register", {"raw_handle": {"b64": ""}, "device_id": 0, "byte_size": 4}),
    ("POST", "/v2/cudasharedmemory/unregister", {}),
    ("GET", "/v2/logging", None),
    ("POST", "/v2/logging", {"log_file": "/tmp/x", "log_verbose_level": 1}),
    ("GET", "/v2/trace/setting", None),
    ("POST", "/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    ("GET", "/v2/models/llm/trace/setting", None),
    ("POST", "/v2/models/llm/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
]
CLOSED_GRPC: dict[str, Callable[[triton_grpc.InferenceServerClient], Any]] = {
    "repository index": lambda client: client.get_model_repository_index(),
    "unload": lambda client: client.unload_model("llm"),
    "load": lambda client: client.load_model("llm"),
    "system shared memory, status": lambda client: client.get_system_shared_memory_status(),
    "system shared memory, register": lambda client: client.register_system_shared_memory("x", "/x", 4),
    "system shared memory, unregister": lambda client: client.unregister_system_shared_memory(),
    "CUDA shared memory, status": lambda client: client.get_cuda_shared_memory_status(),
    "CUDA shared memory, register": lambda client: client.register_cuda_shared_memory("x", b"0" * 64, 0, 4),
    "CUDA shared memory, unregister": lambda client: client.unregister_cuda_shared_memory(),
    "log settings": lambda client: client.get_log_settings(),
    "log settings, change": lambda client: client.update_log_settings({"log_verbose_level": 1}),
    "trace settings": lambda client: client.get_trace_settings(),
    "trace settings, change": lambda client: client.update_trace_settings("llm", {"trace_level": "TIMESTAMPS"}),
}


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(stack.grpc_url) as client:
        yield client


@pytest.fixture(autouse=True)
def _still_answers(stack: Stack) -> Iterator[None]:
    """Requires an answer to a chat after each test."""
    yield
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    answer = httpx.post(f"{stack.frontend_url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


def string(name: str, value: str) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value.encode()]], dtype=np.object_))
    return tensor


def stream(client: triton_grpc.InferenceServerClient, **values: str) -> str | None:
    """The error of a streamed request, or None for its first answer."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error))
    client.async_stream_infer("llm", [string(name, value) for name, value in values.items()])
    error = answers.get(timeout=60)
    client.stop_stream(cancel_requests=True)
    return None if error is None else str(error)


# ---- inference ------------------------------------------------------------------------------------------------------


@pytest.mark.row(51)
@pytest.mark.parametrize("key", WRONG_KEYS)
def test_inference_over_http_needs_the_key(stack: Stack, key: str | None) -> None:
    for path, body in (("generate", PROMPT), ("generate_stream", PROMPT | {"stream": True})):
        sent = body if key is None else body | {"api_key": key}
        answer = httpx.post(f"{stack.http_url}/v2/models/llm/{path}", json=sent, timeout=60)
        assert "api_key: missing or wrong" in answer.text
        assert "text_output" not in answer.text
        assert answer.status_code == 400 or path == "generate_stream"  # a stream's status is sent before its error


@pytest.mark.row(51)
@pytest.mark.parametrize("key", WRONG_KEYS)
def test_inference_over_grpc_needs_the_key(client: triton_grpc.InferenceServerClient, key: str | None) -> None:
    error = stream(client, **PROMPT, **({} if key is None else {"api_key": key}))
    assert error is not None
    assert "api_key: missing or wrong" in error
    assert error.endswith("[UNAUTHENTICATED]")


@pytest.mark.row(51)
def test_either_key_is_enough_for_inference(stack: Stack, client: triton_grpc.InferenceServerClient) -> None:
    for key in (stack.api_key, stack.control_key):
        assert key is not None
        assert stream(client, **PROMPT, api_key=key) is None
        answer = httpx.post(f"{stack.http_url}/v2/models/llm/generate", json=PROMPT | {"api_key": key}, timeout=60)
        assert answer.status_code == 200, answer.text


@pytest.mark.row(51)
def test_rollouts_show_their_key(stack: Stack) -> None:
    with Rollouts(f"grpc://{stack.grpc_url}", timeout=60) as nobody, pytest.raises(RefusedError, match="api_key"):
        nobody.generate([[1, 2]], max_tokens=1)
    for address in (f"grpc://user:{stack.api_key}@{stack.grpc_url}", f"grpc://{stack.control_key}@{stack.grpc_url}"):
        with Rollouts(address, timeout=60) as rollouts:
            assert rollouts.generate([[1, 2]], max_tokens=1).token_ids.size == 1


@pytest.mark.row(51)
@pytest.mark.parametrize("key", WRONG_KEYS)
def test_a_stranger_opens_no_channel(client: triton_grpc.InferenceServerClient, key: str | None) -> None:
    error = stream(client, engine_channel="stranger", **({} if key is None else {"api_key": key}))
    assert error is not None
    assert "api_key: missing or wrong" in error


@pytest.mark.row(51)
def test_a_stranger_without_a_channel_generates_nothing(client: triton_grpc.InferenceServerClient) -> None:
    """A channel has a random name of 128 bits, and no answer contains that of another client."""
    error = stream(client, engine_channel="front-end-guess", engine_request="x")
    assert error is not None
    assert "engine_channel: 'front-end-guess' is not open" in error


@pytest.mark.parametrize("operation", ["health", "describe"])
def test_probes_need_no_key(client: triton_grpc.InferenceServerClient, operation: str) -> None:
    assert stream(client, control_operation=operation) is None


# ---- administration -------------------------------------------------------------------------------------------------


@pytest.mark.row(37)
@pytest.mark.parametrize(("method", "path", "body"), CLOSED_HTTP)
def test_administration_is_closed_over_http(stack: Stack, method: str, path: str, body: dict[str, Any] | None) -> None:
    answer = httpx.request(method, stack.http_url + path, json=body, timeout=30)
    assert (answer.status_code, "restricted" in answer.text) == (403, True), answer.text


@pytest.mark.row(37)
@pytest.mark.parametrize("call", CLOSED_GRPC.values(), ids=CLOSED_GRPC.keys())
def test_administration_is_closed_over_grpc(
    client: triton_grpc.InferenceServerClient, call: Callable[[triton_grpc.InferenceServerClient], Any]
) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        call(client)


@pytest.mark.row(37)
def test_what_opens_administration_cannot_be_sent(stack: Stack) -> None:
    """Every user of the machine can read the header's value in the list of processes."""
    command = Path(f"/proc/{stack.triton.pid}/cmdline").read_text().split("\0")
    (rule,) = [argument for argument in command if argument.startswith("--http-restricted-api=")]
    name, _, value = rule.partition(":")[2].partition("=")
    host = stack.config.triton_host
    assert b"restricted" in raw_requests.http((host, stack.config.triton_http_port), "GET", "/v2/logging", {})
    assert b"restricted" in raw_requests.grpc((host, stack.config.triton_grpc_port), "LogSettings", {})
    known = value.encode()
    names = (name, name.lower(), f"triton-grpc-protocol-{name}", f"triton-grpc-protocol-{name.lower()}")
    for sent in (known, *(known.replace(b"\n", other) for other in (b"", b" ", b"\r\n ", b"\n ", b"\r\n", b"\r"))):
        answer = raw_requests.http((host, stack.config.triton_http_port), "GET", "/v2/logging", {name: sent})
        assert b" 200 " not in answer
        assert b"log_verbose" not in answer
        for key in names:
            answer = raw_requests.grpc((host, stack.config.triton_grpc_port), "LogSettings", {key: sent})
            assert b"log_verbose" not in answer


@pytest.mark.row(37)
def test_reading_stays_open(stack: Stack, client: triton_grpc.InferenceServerClient) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/llm/ready", "/v2", "/v2/models/llm"):
        assert httpx.get(stack.http_url + path, timeout=30).status_code == 200
    assert client.is_model_ready("llm")
    assert client.get_model_metadata("llm").name == "llm"
    assert client.get_inference_statistics("llm").model_stats
