"""Weights of a checkpoint that a replica stand-in serves."""

import pytest
import torch


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(64, 16).bfloat16(),
        "model.layers.0.weight": torch.randn(16, 16).bfloat16(),
        "model.layers.0.bias": torch.randn(16),
        "lm_head.weight": torch.randn(64, 16).bfloat16(),
    }
