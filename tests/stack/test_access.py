"""Which key allows which operation, over HTTP and over Triton."""

import json
import queue
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc

from tritonlive.launch import Stack

from . import raw_requests
from .conftest import MODEL, bearer

OPEN = {"/health", "/health/", "/ping", "/version", "/metrics"}
CONTROL = {
    "/pause",
    "/resume",
    "/init_weight_transfer_engine",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/abort_weight_update",
    "/update_weight_version",
    "/weight_info",
    "/weight_checker",
    "/get_world_size",
    "/reset_prefix_cache",
    "/server_info",
    "/replica_status",
    "/weight_parameters",
    "/lora_adapters",
    "/lora_adapters/{name}",
    "/lora_adapters/{name}/activate",
    "/lora_adapters/{name}/discard",
    # TRL's older client
    "/get_world_size/",
    "/init_communicator/",
    "/update_named_param/",
    "/reset_prefix_cache/",
    "/close_communicator/",
}


@pytest.fixture(scope="module")
def routes(frontend: httpx.Client) -> list[tuple[str, str]]:
    """(method, path) of every route in the app's own list."""
    paths = frontend.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


@pytest.mark.row(1)
def test_every_route_needs_a_key_but_the_written_few(stack: Stack, routes: list[tuple[str, str]]) -> None:
    assert len(routes) > 30
    answers = {
        (method, path): httpx.request(method, stack.frontend_url + path, timeout=30).status_code
        for method, path in routes
        if path not in OPEN
    }
    assert set(answers.values()) == {401}, {route for route, status in answers.items() if status != 401}


@pytest.mark.row(2)
def test_an_inference_key_does_not_do_for_control(frontend: httpx.Client, routes: list[tuple[str, str]]) -> None:
    known = {path: method for method, path in routes}
    assert known.keys() >= CONTROL
    for path in CONTROL:
        answer = frontend.request(known[path], path)
        assert answer.status_code == 403, path
        assert "control key" in answer.json()["error"]["message"]


@pytest.mark.row(4)
@pytest.mark.parametrize("path", ["/pause", "/v1/completions", "/update_weights"])
@pytest.mark.parametrize(
    "spelling",
    [
        "{path}",
        "{path}/",
        "/{path}",
        "/health{path}",
        "/health/..{path}",
        "/health%2f..{path}",
        "/health;{path}",
        "/%2e%2e{path}",
        "/.{path}",
        "{path}?/health",
        "{path}#/health",
        "{path}%00",
        "{path}%20",
        "{path}\t",
        "http://x/health{path}",
        "http://x{path}",
    ],
)
def test_no_spelling_of_a_path_gets_around_the_key(stack: Stack, path: str, spelling: str) -> None:
    """The key hangs on the route that answers, not on the text of the path."""
    target = spelling.format(path=path)
    answer = raw_requests.http(("127.0.0.1", stack.config.port), "POST", target, {})
    status = int(answer.split()[1])
    assert status in (307, 400, 401, 404, 405), answer
    if status == 307:
        location = next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"location:"))
        assert location.decode().rstrip().endswith((path, path + "/")), "asks for the key there"


def test_a_key_in_the_url_is_basic_auth(stack: Stack) -> None:
    url = stack.frontend_url.replace("http://", f"http://trainer:{stack.control_key}@")
    assert httpx.get(f"{url}/weight_info", timeout=30).status_code == 200


@pytest.mark.row(5)
@pytest.mark.parametrize("path", ["/collective_rpc", "/v1/collective_rpc", "/sleep_all"])
def test_development_routes_are_not_there(trainer: httpx.Client, path: str) -> None:
    assert trainer.post(path, json={"method": "reset_weights"}).status_code == 404


@pytest.mark.row(3)
@pytest.mark.parametrize("key", [None, "", "wrong", "test-inference-key"])
@pytest.mark.parametrize("operation", ["update_weight_version", "pause_generation", "status", "no_such_operation"])
def test_control_tensors_need_the_key(
    triton: Callable[[dict[str, Any]], httpx.Response], operation: str, key: str | None
) -> None:
    body = {"control_operation": operation, "control_arguments": json.dumps({"new_version": "stolen"})}
    answer = triton(body if key is None else {**body, "control_key": key})
    assert answer.status_code == 400
    assert "control_key: missing or wrong" in answer.json()["error"]


@pytest.mark.row(3)
def test_control_tensors_need_the_key_over_grpc(stack: Stack, control: Callable[..., dict[str, Any]]) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    inputs = []
    for name, value in (("control_operation", b"update_weight_version"), ("control_arguments", b'{"new_version":"x"}')):
        tensor = tritonclient.grpc.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
        inputs.append(tensor)
    before = control("get_weight_version")
    with tritonclient.grpc.InferenceServerClient(stack.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer("llm", inputs)
        assert "control_key: missing or wrong" in str(answers.get(timeout=30))
    assert control("get_weight_version") == before


def test_keys_are_in_no_log(stack: Stack) -> None:
    for log in (stack.triton_log, stack.frontend_log):
        text = log.read_text(errors="replace")
        assert stack.control_key not in text
        assert (stack.api_key or "-") not in text


def test_an_openai_client_needs_only_the_inference_key(stack: Stack) -> None:
    answer = httpx.post(
        f"{stack.frontend_url}/v1/completions",
        headers=bearer(stack.api_key),
        json={"model": MODEL, "prompt": "x", "max_tokens": 1},
        timeout=60,
    )
    assert answer.status_code == 200
