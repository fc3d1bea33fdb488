"""Digests of tensors: the trainer's travel with a push, and the workers compare them with what arrived."""

from collections.abc import Mapping

import torch
import xxhash

from .sources import ParamMeta

DIGEST_BYTES = 8

Digests = Mapping[ParamMeta, int]
"""XXH3 (64 bits) of each tensor's bytes. It finds what went wrong on the way; it is no signature."""


def digest(data: torch.Tensor) -> int:
    """Digest of uint8 data[num_bytes] in host memory."""
    return xxhash.xxh3_64_intdigest(data.numpy())


def tensor_digest(tensor: torch.Tensor) -> int:
    """Digest of a tensor's bytes, in its own dtype, row by row."""
    return digest(tensor.cpu().contiguous().reshape(-1).view(torch.uint8))


def pack_digests(digests: list[int]) -> torch.Tensor:
    """As uint8[8 * n], to be broadcast; n is at least 1."""
    raw = b"".join(value.to_bytes(DIGEST_BYTES, "little") for value in digests) or bytes(DIGEST_BYTES)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def unpack_digests(data: torch.Tensor) -> list[int]:
    """The other way."""
    raw = data.numpy().tobytes()
    return [int.from_bytes(raw[i : i + DIGEST_BYTES], "little") for i in range(0, len(raw), DIGEST_BYTES)]
