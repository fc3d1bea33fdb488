"""The legacy routes over HTTP: keys, refusals, and clients that go away."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tritonlive.launch import Stack

CONTROL = [
    ("GET", "/get_world_size/"),
    ("POST", "/init_communicator/"),
    ("POST", "/update_named_param/"),
    ("POST", "/reset_prefix_cache/"),
    ("POST", "/close_communicator/"),
]
GENERATION = ["/generate/", "/chat/", "/get_sequence_logprobs/"]
HELLO = [{"role": "user", "content": "Hello"}]
FREED_WITHIN_S = 15.0


@pytest.fixture(scope="module")
def rollouts(trl_stack: Stack) -> Iterator[httpx.Client]:
    """HTTP client of the front end with the inference key."""
    headers = {"Authorization": f"Bearer {trl_stack.api_key}"}
    with httpx.Client(base_url=trl_stack.frontend_url, headers=headers, timeout=120) as client:
        yield client


def test_probes_need_no_key(trl_stack: Stack) -> None:
    assert httpx.get(f"{trl_stack.frontend_url}/health/", timeout=30).status_code == 200


@pytest.mark.parametrize("path", GENERATION)
def test_generation_needs_a_key(trl_stack: Stack, path: str) -> None:
    assert httpx.post(f"{trl_stack.frontend_url}{path}", json={}, timeout=30).status_code == 401


@pytest.mark.parametrize(("method", "path"), CONTROL)
def test_weights_and_caches_need_the_control_key(rollouts: httpx.Client, method: str, path: str) -> None:
    assert rollouts.request(method, path).status_code == 403


def test_an_inference_key_generates(rollouts: httpx.Client) -> None:
    answer = rollouts.post("/generate/", json={"prompts": ["Hello"], "max_tokens": 3})
    assert answer.status_code == 200
    assert len(answer.json()["completion_ids"][0]) == 3


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/generate/", {"prompts": []}, "prompts"),
        ("/generate/", {"prompts": ["x", ""]}, "prompts"),
        ("/generate/", {"prompts": ["x", [1]]}, "prompts"),
        ("/generate/", {"prompts": [[10**6]]}, "out of vocabulary"),
        ("/generate/", {"prompts": [[1] * 2049]}, "maximum context length is 2048"),
        ("/generate/", {"prompts": ["x"], "images": [["QUJD"]]}, "images"),
        ("/generate/", {"prompts": ["x"], "n": 10**9}, "n: at most 128"),
        ("/generate/", {"prompts": ["x"], "logprobs": 10**6}, "logprobs"),
        ("/generate/", {"prompts": ["x"], "temperature": -1}, "temperature"),
        ("/generate/", {"prompts": ["x"], "structured_outputs_regex": "("}, "regex"),
        ("/generate/", {"prompts": ["x"], "generation_kwargs": {"no_such": 1}}, "no_such"),
        ("/chat/", {"messages": [[]]}, "messages"),
        ("/chat/", {"messages": [HELLO], "tools": [{"name": "x"}]}, "tools"),
        ("/chat/", {"messages": [HELLO], "chat_template_kwargs": {"chat_template": "x"}}, "untrusted chat template"),
        ("/get_sequence_logprobs/", {"sequences": [[1]], "prompt_lengths": [2]}, "prompt_lengths"),
        ("/get_sequence_logprobs/", {"sequences": [[1]], "prompt_lengths": [0], "top_logprobs": 10**9}, "logprobs"),
    ],
)
def test_a_bad_request_names_its_fault(rollouts: httpx.Client, path: str, body: dict[str, Any], message: str) -> None:
    answer = rollouts.post(path, json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_killed_client_frees_the_engine(trl_stack: Stack) -> None:
    body = {
        "prompts": ["Hello", "Bye"],
        "n": 32,
        "max_tokens": 1900,
        "logprobs": None,
        "generation_kwargs": {"ignore_eos": True},
    }
    program = "import httpx, sys; url, body, key = sys.argv[1:]; httpx.post(url, content=body, headers={'Authorization': key, 'Content-Type': 'application/json'}, timeout=300)"  # noqa: E501
    url = f"{trl_stack.frontend_url}/generate/"
    arguments = [sys.executable, "-c", program, url, json.dumps(body), f"Bearer {trl_stack.api_key}"]
    with subprocess.Popen(arguments) as client:
        try:
            wait_until_running(trl_stack, lambda running: running > 0, 60)
        finally:
            client.kill()
    wait_until_running(trl_stack, lambda running: running == 0, FREED_WITHIN_S)
    assert client.returncode < 0, "killed, not finished"


def wait_until_running(stack: Stack, condition: Any, limit_s: float) -> None:
    """Wait for a number of running generations that satisfies `condition`."""
    deadline = time.monotonic() + limit_s
    while True:
        text = httpx.get(stack.metrics_url, timeout=30).text
        match = re.search(r'^vllm:num_requests_running{model="llm"[^}]*} (\S+)$', text, re.MULTILINE)
        assert match is not None
        if condition(float(match[1])):
            return
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.05)
