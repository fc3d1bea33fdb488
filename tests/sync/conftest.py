"""Weights small enough to look at, with everything a layout has to cope with."""

import pytest
import torch


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(64, 16).bfloat16(),
        "model.layers.0.weight": torch.randn(16, 16).bfloat16(),
        "model.layers.0.bias": torch.randn(16),
        "model.layers.0.scale": torch.tensor(0.5),
        "model.layers.0.empty": torch.empty(0, 4),
        "model.layers.0.counts": torch.arange(7),
        "model.layers.1.half": torch.randn(3, 5).half(),
        "lm_head.weight": torch.randn(64, 16).bfloat16(),
    }
