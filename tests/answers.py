"""Helpers for tests of pushes: other weights of the tiny model, the greedy answer that tells them apart, a start."""

from collections.abc import Callable

import httpx
import torch

from tritonlive.launch import Stack

Weights = dict[str, torch.Tensor]
Complete = Callable[[], tuple[str, str]]
PROMPT = {"model": "tiny", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 16}


def perturb(weights: Weights) -> Weights:
    """Weights changed far enough for another answer; the same on each call."""
    torch.manual_seed(1)
    return {name: tensor + torch.randn_like(tensor) * tensor.std() * 0.3 for name, tensor in weights.items()}


def ensure_running(stack: Stack) -> None:
    """Start the stack unless it runs, and wait until it answers. Raises the errors of Stack.wait_ready."""
    if not (stack.triton.is_running and stack.frontend.is_running):
        stack.kill()  # what is left of it
        stack.start()
        stack.wait_ready(240)


def complete(stack: Stack, timeout_s: float) -> tuple[str, str]:
    """A greedy answer: its text and its weight version. Raises httpx.HTTPError."""
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    answer = httpx.post(f"{stack.frontend_url}/v1/completions", json=PROMPT, headers=headers, timeout=timeout_s)
    answer.raise_for_status()
    return answer.json()["choices"][0]["text"], answer.headers["x-weight-version"]
