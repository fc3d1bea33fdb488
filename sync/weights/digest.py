"""Digests of tensors: the trainer sends them with a push, and the workers compare them with what arrived."""

from collections.abc import Mapping

import torch
import xxhash

from sync.weights.weight_source import ParamMeta

Digests = Mapping[ParamMeta, int]
"""XXH3 (64 bits) of each tensor's bytes. It detects damage but is no signature, so the trainer's digests travel over an
authenticated link (transport/link.py)."""
EMPTY_DIGEST = xxhash.xxh3_64_intdigest(b"")


def digest(data: torch.Tensor) -> int:
    """Digest of uint8 data[num_bytes] in host memory."""
    return xxhash.xxh3_64_intdigest(data.numpy())


def tensor_digest(tensor: torch.Tensor) -> int:
    """Digest of a tensor's bytes, in its own dtype, row by row."""
    return digest(tensor.cpu().contiguous().reshape(-1).view(torch.uint8))
