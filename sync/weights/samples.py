"""Samples of tensors: a cheap second look tells whether a tensor changed since the first one."""

from collections.abc import Mapping

import torch

MAX_SAMPLES = 1024


class Samples:
    """Up to 1024 elements of each tensor, spread over all of it, as they were when the tensor was read.

    An optimizer step changes nearly every element of a tensor, so it shows in the sample. A change of a few elements
    elsewhere does not: this finds a training step that ran into a push, it is no proof that nothing changed.
    """

    def __init__(self) -> None:
        self._taken: dict[str, torch.Tensor] = {}

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Remember a tensor's sample, on its own device: no transfer, no wait for the device."""
        if not tensor.is_meta:
            self._taken[name] = sample(tensor)

    def changed(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        """Names of the tensors whose sample is another one now. Waits for each device once."""
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
        # Indices by dimension: reshaping would copy the whole tensor.
        flat = torch.arange(0, own.numel(), stride, device=own.device)[:MAX_SAMPLES]
        taken = own[torch.unravel_index(flat, own.shape)] if own.dim() else own.reshape(1)
    return taken.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if callable(to_local) else tensor
