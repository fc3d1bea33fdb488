"""Weights to push, a second replica, and a stack that must still answer after each fault."""

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from safetensors.torch import load_file

from sync import WeightSync
from sync.control.client import ControlClient
from sync.control.connect import connect
from sync.control.target import Target
from tests import answers
from tests.answers import Complete, Weights, perturb
from tritonlive.launch import Stack, StackConfig


@pytest.fixture(scope="session")
def second_stack(stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A second Triton server with its own front end. The first module that needs it starts it.

    The shared stack is the first replica.
    """
    stack = Stack(replace(stack_config, log_dir=tmp_path_factory.mktemp("second-logs")))
    yield stack
    stack.kill()


@pytest.fixture(scope="session")
def weights(tiny_model_dir) -> Weights:
    """The checkpoint's weights."""
    return load_file(tiny_model_dir / "model.safetensors")


@pytest.fixture(scope="session")
def perturbed(weights: Weights) -> Weights:
    return perturb(weights)


@pytest.fixture
def control(stack: Stack) -> Iterator[ControlClient]:
    """Control of the shared stack over Triton's gRPC, without a lease."""
    with connect(Target.parse(f"grpc://{stack.grpc_url}", stack.control_key), timeout=60) as client:
        yield client


@pytest.fixture
def complete(stack: Stack) -> Complete:
    """Returns a greedy answer's text and weight version."""
    return lambda: answers.complete(stack, 60)


@pytest.fixture
def original(stack: Stack, weights: Weights, complete: Complete) -> Iterator[tuple[str, str]]:
    """Text and version of a greedy answer with the checkpoint's weights.

    Afterwards pushes those weights again and requires an answer to a chat.
    """
    with WeightSync(stack.frontend_url, backend="gloo", control_key=stack.control_key, timeout=60) as client:
        client.push(weights, "original")
    yield complete()
    with WeightSync(stack.frontend_url, backend="gloo", control_key=stack.control_key, timeout=60) as client:
        client.push(weights, "restored")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    answer = httpx.post(f"{stack.frontend_url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.fixture
def sync(stack: Stack, original: tuple[str, str]) -> Iterator[WeightSync]:
    """A trainer that connects after the push of the original weights, and leaves before their next push."""
    with WeightSync(stack.frontend_url, backend="gloo", control_key=stack.control_key, timeout=60) as client:
        yield client
