"""Clients of the shared stack, and a stack of two front-end processes."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.answers import ensure_running
from tritonlive.launch import Stack, StackConfig

MODEL = "tiny"


def bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def wait_until(condition: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def two_front_ends(stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with LoRA and with two front-end processes. The first module that needs it starts it."""
    config = replace(
        stack_config,
        extra_args=(
            *stack_config.extra_args,
            *("--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--max-cpu-loras", "4"),
        ),
        workers=2,
        env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
        log_dir=tmp_path_factory.mktemp("lora-logs"),
    )
    stack = Stack(config)
    yield stack
    stack.kill()


@pytest.fixture(scope="module")
def lora_stack(two_front_ends: Stack) -> Stack:
    """A stack whose two front-end processes must both know which adapters were pushed."""
    ensure_running(two_front_ends)
    return two_front_ends


@pytest.fixture(scope="session")
def openai(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.frontend_url}/v1", api_key=stack.api_key or "", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def async_openai(stack: Stack) -> AsyncOpenAI:
    """An async OpenAI client. The loop that uses it closes it: `async with async_openai`."""
    return AsyncOpenAI(base_url=f"{stack.frontend_url}/v1", api_key=stack.api_key or "", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def frontend(stack: Stack) -> Iterator[httpx.Client]:
    """HTTP client of the front end with the inference key."""
    with httpx.Client(base_url=stack.frontend_url, headers=bearer(stack.api_key), timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def trainer(stack: Stack) -> Iterator[httpx.Client]:
    """HTTP client of the front end with the control key."""
    with httpx.Client(base_url=stack.frontend_url, headers=bearer(stack.control_key), timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def triton(stack: Stack) -> Callable[[dict[str, Any]], httpx.Response]:
    """POST to Triton's generate endpoint, with the inference key unless the body has one."""

    def generate(body: dict[str, Any]) -> httpx.Response:
        return httpx.post(
            f"{stack.http_url}/v2/models/llm/generate", json={"api_key": stack.api_key, **body}, timeout=120
        )

    return generate


@pytest.fixture(scope="session")
def control(stack: Stack, triton: Callable[[dict[str, Any]], httpx.Response]) -> Callable[..., dict[str, Any]]:
    """Run a control operation over Triton's HTTP endpoint, with the key."""

    def run(operation: str, **arguments: Any) -> dict[str, Any]:
        body = {
            "control_operation": operation,
            "control_arguments": json.dumps(arguments),
            "control_key": stack.control_key,
        }
        answer = triton(body)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.json()["control_result"])

    return run


def read_metric(url: str, name: str) -> float:
    """Value of one of Triton's metrics for our model."""
    text = httpx.get(url, timeout=30).text
    match = re.search(rf'^{name}{{model="llm"[^}}]*}} (\S+)$', text, re.MULTILINE)
    assert match is not None, f"no metric {name}"
    return float(match[1])


@pytest.fixture(scope="session")
def metric(stack: Stack) -> Callable[[str], float]:
    """Reads one of Triton's metrics."""
    return lambda name: read_metric(stack.metrics_url, name)
