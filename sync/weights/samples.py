"""Samples of tensors: comparing two samples of a tensor is a cheap test whether it changed."""

from collections.abc import Mapping

import torch

MAX_SAMPLES = 1024


class Samples:
    """Up to 1024 elements of each tensor, evenly spread, with their values when the tensor was read.

    An optimizer step changes nearly every element of a tensor, so a sample shows it. A change of a few other elements
    does not show: the test finds a training step during a push, but does not prove that nothing changed.
    """

    def __init__(self) -> None:
        self._taken: dict[str, torch.Tensor] = {}

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a sample of a tensor, on its device: no transfer, no wait for the device."""
        if not tensor.is_meta:
            self._taken[name] = sample(tensor)

    def changed(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        """Names of the tensors whose samples have changed. Waits for each device once."""
        found: dict[torch.device, dict[str, torch.Tensor]] = {}
        for name, taken in self._taken.items():
            differs = (taken != sample(tensors[name])).any()
            found.setdefault(differs.device, {})[name] = differs
        changed: set[str] = set()
        for differences in found.values():
            answers = torch.stack(list(differences.values())).tolist()
            changed.update(name for name, differs in zip(differences, answers, strict=True) if differs)
        return [name for name in self._taken if name in changed]


@torch.no_grad()
def sample(tensor: torch.Tensor) -> torch.Tensor:
    """uint8[k] or the tensor's dtype[k], k <= 1024 · item size: bit patterns, so that NaN equals NaN."""
    own = local(tensor).detach()
    stride = max(1, own.numel() // MAX_SAMPLES)
    if own.is_contiguous():
        taken = own.reshape(-1)[::stride][:MAX_SAMPLES]
    else:
        # Indices for each dimension: reshaping would copy the whole tensor.
        flat = torch.arange(0, own.numel(), stride, device=own.device)[:MAX_SAMPLES]
        taken = own[torch.unravel_index(flat, own.shape)] if own.dim() else own.reshape(1)
    return taken.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if callable(to_local) else tensor
