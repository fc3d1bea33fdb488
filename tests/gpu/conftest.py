"""Stacks on a GPU, one for each way that weights get there. The trainer's GPU is another one if there is one.

On a single GPU NCCL needs NCCL_MULTI_RANK_GPU_ENABLE=1 and a version that knows it (VLLM_NCCL_SO_PATH may name one).
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sync.control.client import ControlClient
from sync.control.connect import connect
from sync.control.target import Target
from tests import answers
from tests.answers import Complete, Weights, perturb
from tritonlive.launch import Stack, StackConfig

NUM_GPUS = torch.cuda.device_count()
TRAINER_DEVICE = f"cuda:{min(1, NUM_GPUS - 1)}"

needs_gpu = pytest.mark.skipif(NUM_GPUS < 1, reason="needs a GPU")
needs_nccl = pytest.mark.skipif(
    NUM_GPUS < 2 and not (NUM_GPUS and os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1"),
    reason="needs a GPU for the trainer besides the server's, or NCCL_MULTI_RANK_GPU_ENABLE=1",
)


@pytest.fixture(scope="session")
def serve(stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stack]:
    """A stack, not yet started, whose vLLM receives weights with this backend."""

    def stack(backend: str) -> Stack:
        options = (
            *("--weight-transfer-config", json.dumps({"backend": backend}), "--gpu-memory-utilization", "0.3"),
            *("--dtype", "bfloat16"),  # a GPU computes in it, and a trainer's weights are in it
        )
        logs = Path(os.environ.get("TRITONLIVE_TEST_LOG_DIR") or tmp_path_factory.mktemp("logs")) / backend
        return Stack(replace(stack_config, extra_args=(*stack_config.extra_args, *options), log_dir=logs))

    return stack


@pytest.fixture(scope="session")
def weights(tiny_model_dir: Path) -> Weights:
    """The checkpoint's own, on the trainer's GPU."""
    return load_file(tiny_model_dir / "model.safetensors", TRAINER_DEVICE)


@pytest.fixture(scope="session")
def perturbed(weights: Weights) -> Weights:
    return perturb(weights)


@pytest.fixture(scope="session")
def perturbed_file(perturbed: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perturbed") / "model.safetensors"
    save_file(perturbed, path)
    return path


@pytest.fixture
def control(server: Stack) -> Iterator[ControlClient]:
    """Over Triton's gRPC, without a lease."""
    with connect(Target.parse(f"grpc://{server.grpc_url}", server.control_key), timeout=120) as client:
        yield client


@pytest.fixture
def complete(server: Stack) -> Complete:
    """A greedy answer: its text and its weight version."""
    return lambda: answers.complete(server, 120)
