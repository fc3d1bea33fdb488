"""Weights for pushes: sets with different values and the same names, shapes and dtypes."""

from pathlib import Path

import torch

from sync.transport.layout import align, host_buffer
from sync.weights.checkpoint_source import CheckpointSource

Weights = dict[str, torch.Tensor]


def weight_set(checkpoint: Path | str, seed: int) -> Weights:
    """The checkpoint's tensors for seed 0; for other seeds with a little noise added."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor.clone() for name, tensor in CheckpointSource(checkpoint)}
    if seed:
        for tensor in weights.values():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            tensor += (noise * 0.05 * tensor.float().abs().mean()).to(tensor.dtype)
    return weights


def staged(weights: Weights) -> list[tuple[str, torch.Tensor]]:
    """The tensors as a worker has them after a push: views of one piece of memory."""
    memory = host_buffer(sum(align(tensor.nbytes) for tensor in weights.values()))
    placed: list[tuple[str, torch.Tensor]] = []
    at = 0
    for name, tensor in weights.items():
        place = memory[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        placed.append((name, place.copy_(tensor)))
        at += align(tensor.nbytes)
    return placed
