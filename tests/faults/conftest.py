"""What every fault has in common: weights to push, and a server that must still answer afterwards."""

from collections.abc import Iterator

import httpx
import pytest
from safetensors.torch import load_file

from sync import WeightSync
from sync.control.client import ControlClient
from sync.control.connect import connect
from sync.control.target import Target
from tests import answers
from tests.answers import Complete, Weights, perturb
from tritonlive.launch import Stack


@pytest.fixture(scope="session")
def weights(tiny_model_dir) -> Weights:
    """The checkpoint's own."""
    return load_file(tiny_model_dir / "model.safetensors")


@pytest.fixture(scope="session")
def perturbed(weights: Weights) -> Weights:
    return perturb(weights)


@pytest.fixture
def control(stack: Stack) -> Iterator[ControlClient]:
    """Over Triton's gRPC, without a lease."""
    with connect(Target.parse(f"grpc://{stack.grpc_url}", stack.control_key), timeout=60) as client:
        yield client


@pytest.fixture
def complete(stack: Stack) -> Complete:
    """A greedy answer: its text and its weight version."""
    return lambda: answers.complete(stack, 60)


@pytest.fixture
def original(stack: Stack, weights: Weights, complete: Complete) -> Iterator[tuple[str, str]]:
    """Text and version that the checkpoint's own weights give; afterwards they serve again, and a chat is answered."""
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
    """Connected after the original weights were pushed, and gone before they are pushed again."""
    with WeightSync(stack.frontend_url, backend="gloo", control_key=stack.control_key, timeout=60) as client:
        yield client
