"""Rows 16, 18 and 54: clients that leave, and more of them than a front end takes. Rows 17 and 53: test_crowd.py."""

import contextlib
import json
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.stack.conftest import MODEL, bearer, read_metric, wait_until
from tritonlive.launch import Stack, ready
from tritonlive.launch.process import ManagedProcess
from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE

logger = logging.getLogger(__name__)

# The promise is one second; a busy machine may need more.
FREED_LIMIT_S = 4.0
LONG = {"model": MODEL, "prompt": "Hello", "max_tokens": 1900, "n": 16, "ignore_eos": True}


@pytest.fixture(autouse=True)
def healthy_afterwards(stack: Stack) -> Iterator[None]:
    yield
    assert chat(stack).status_code == 200


def is_free(stack: Stack) -> bool:
    """Whether the engine runs nothing and all its KV blocks are free."""
    names = ("vllm:num_requests_running", "vllm:kv_cache_usage_perc")
    return all(read_metric(stack.metrics_url, name) == 0 for name in names)


def chat(stack: Stack, timeout_s: float = 60.0) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    url = f"{stack.frontend_url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=bearer(stack.api_key), timeout=timeout_s)


def send(stack: Stack, **body: Any) -> socket.socket:
    """Send a completion request and read nothing of the answer, of which the kernel keeps little."""
    payload = json.dumps(LONG | body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {stack.api_key}\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before it connects
    connection.settimeout(30)
    connection.connect(("127.0.0.1", stack.config.port))
    connection.sendall(head.encode() + payload)
    return connection


@pytest.mark.row(16)
@pytest.mark.parametrize("body", [{"stream": True}, {"stream": False}], ids=["stream", "whole"])
def test_a_client_that_leaves_in_the_middle_frees_the_engine(stack: Stack, body: dict[str, Any]) -> None:
    connection = send(stack, **body)
    if body["stream"]:
        assert b"data:" in connection.recv(4096) + connection.recv(4096)
    wait_until(lambda: not is_free(stack), 30)
    began = time.monotonic()
    connection.close()
    wait_until(lambda: is_free(stack), FREED_LIMIT_S)
    logger.info("free after %.2f s", time.monotonic() - began)


@pytest.mark.row(16)
def test_a_client_that_leaves_before_the_first_token_frees_the_engine(stack: Stack) -> None:
    """The engine stands still, so that the client's request has no token when the client leaves."""
    engines = [psutil.Process(pid) for pid in stack.engine_core_pids]
    for engine in engines:
        engine.suspend()
    try:
        connection = send(stack, stream=True)
        time.sleep(0.5)
        connection.close()
        time.sleep(0.5)
    finally:
        for engine in engines:
            engine.resume()
    time.sleep(0.5)  # one look at the metrics
    wait_until(lambda: is_free(stack), FREED_LIMIT_S)


@pytest.fixture
def limited(stack: Stack, tmp_path: Path) -> Iterator[str]:
    """Base URL of a second front end over the stack's Triton, with --max-queued 4."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "openai_frontend", "--triton-url", stack.grpc_url, "--port", str(port)]
    env = os.environ | {API_KEY_VARIABLE: stack.api_key or "", CONTROL_KEY_VARIABLE: stack.control_key}
    front_end = ManagedProcess("front end", [*command, "--max-queued", "4"], env, tmp_path / "frontend.log")
    front_end.start()
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client() as client:
            wait_until(lambda: ready.is_ok(client, f"{url}/health"), 120)
        yield url
    finally:
        front_end.stop(30)


@pytest.mark.row(18)
def test_beyond_the_limit_of_the_queue_requests_are_refused_at_once_and_the_others_end(
    stack: Stack, limited: str
) -> None:
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 400, "ignore_eos": True}
    with httpx.Client(base_url=limited, headers=bearer(stack.api_key), timeout=120) as client:
        with ThreadPoolExecutor(4) as clients:
            admitted = [clients.submit(client.post, "/v1/completions", json=body) for _ in range(4)]
            wait_until(lambda: read_metric(stack.metrics_url, "vllm:num_requests_running") == 4, 30)
            for is_stream in (False, True):
                began = time.monotonic()
                refused = client.post("/v1/completions", json=body | {"stream": is_stream})
                assert time.monotonic() - began < 2
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert "--max-queued is 4" in refused.json()["error"]["message"]
        answers = [each.result() for each in admitted]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [400] * 4
        assert client.post("/v1/completions", json=body | {"max_tokens": 1}).status_code == 200


@pytest.mark.row(54)
def test_without_file_descriptors_a_front_end_serves_those_that_are_connected(stack: Stack) -> None:
    """And everybody else again once it has some."""
    front_end = psutil.Process(stack.frontend.pid)
    limits = resource.prlimit(front_end.pid, resource.RLIMIT_NOFILE)
    with httpx.Client(base_url=stack.frontend_url, headers=bearer(stack.api_key), timeout=60) as client:
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": 4}
        assert client.post("/v1/completions", json=body).status_code == 200
        resource.prlimit(front_end.pid, resource.RLIMIT_NOFILE, (front_end.num_fds(), limits[1]))
        try:
            with contextlib.ExitStack() as connections:
                for _ in range(20):
                    address = ("127.0.0.1", stack.config.port)
                    connections.enter_context(contextlib.closing(socket.create_connection(address, timeout=30)))
                for _ in range(3):
                    assert client.post("/v1/completions", json=body).status_code == 200
                # It waits, or with uvloop the connection is closed at once.
                with pytest.raises(httpx.TransportError):
                    chat(stack, timeout_s=2)
        finally:
            resource.prlimit(front_end.pid, resource.RLIMIT_NOFILE, limits)
    assert chat(stack).status_code == 200
