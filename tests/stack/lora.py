"""LoRA adapters of the tiny model, and transformers' logprobs with them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

RANK = 8
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 2 * RANK,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "bias": "none",
}
SHAPES = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 64), "mlp.down_proj": (64, 128)}
PREFIX = "base_model.model."


def adapter(seed: int, rank: int = RANK) -> dict[str, torch.Tensor]:
    """An adapter with PEFT's names, strong enough that each seed gives other tokens."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{PREFIX}model.layers.{layer}.{module}.lora_{side}.weight": 0.3 * torch.randn(shape, generator=generator)
        for layer in range(2)
        for module, (rows, columns) in SHAPES.items()
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank)))
    }


def merged_logprobs(
    model_dir: Path, tensors: dict[str, torch.Tensor], prompt: list[int], completion: list[int], mlp_scale: float = 1
) -> list[float]:
    """log p of each token of `completion`, by transformers in float32 with the adapter added to the weights.

    mlp_scale: what the MLPs' weights were multiplied with beforehand.
    """
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in (name for name in weights if "mlp" in name):
            weights[name].mul_(mlp_scale)
        for name in (name for name in tensors if ".lora_A." in name):
            b = tensors[name.replace("lora_A", "lora_B")]
            scale = CONFIG["lora_alpha"] / CONFIG["r"]
            weights[name.removeprefix(PREFIX).replace(".lora_A", "")].add_(scale * b @ tensors[name])
        logits = model(torch.tensor([prompt + completion])).logits[0]
    logprobs = torch.log_softmax(logits, -1)
    return [logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion)]
