"""How tensors are laid out in the byte buckets that travel: both sides compute it from the same list."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from .sources import ParamMeta

# Small tensors travel together, up to so many bytes.
DEFAULT_BUCKET_BYTES = 4 * 2**20
# A tensor as large as that has a bucket of its own: sent from where it is, a copy is saved that would cost more than a
# broadcast of its own does.
ALONE_BYTES = 2**20
# Every tensor starts at a multiple, so that a bucket's bytes can be viewed as any dtype.
ALIGNMENT = 64


Pieces = Sequence[tuple[int, torch.Tensor]]
"""What a bucket is filled with: offsets, and uint8[num_bytes] in host memory."""


@dataclass(frozen=True)
class Slot:
    """One tensor's place in a bucket, in bytes."""

    meta: ParamMeta
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.meta.num_bytes


@dataclass(frozen=True)
class Bucket:
    """Consecutive tensors that travel in one broadcast."""

    slots: tuple[Slot, ...]

    @property
    def num_bytes(self) -> int:
        return max(1, self.slots[-1].end)  # a broadcast of nothing is an error


def lay_out(metas: Sequence[ParamMeta], bucket_bytes: int = DEFAULT_BUCKET_BYTES) -> list[Bucket]:
    """Fill buckets of at most `bucket_bytes` in order; large tensors have one of their own."""
    return [Bucket(tuple(slots)) for slots in _fill(metas, bucket_bytes)]


def _fill(metas: Sequence[ParamMeta], bucket_bytes: int) -> Iterator[list[Slot]]:
    slots: list[Slot] = []
    for meta in metas:
        offset = align(slots[-1].end) if slots else 0
        is_alone = meta.num_bytes >= min(ALONE_BYTES, bucket_bytes)
        if slots and (is_alone or offset + meta.num_bytes > bucket_bytes):
            yield slots
            slots, offset = [], 0
        slots.append(Slot(meta, offset))
        if is_alone:
            yield slots
            slots = []
    if slots:
        yield slots


def align(offset: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def total_bytes(buckets: Sequence[Bucket]) -> int:
    """Of memory with all of them one after another."""
    return sum(align(bucket.num_bytes) for bucket in buckets)


def num_tensors(buckets: Sequence[Bucket]) -> int:
    """In all of them."""
    return sum(len(bucket.slots) for bucket in buckets)


def cut(buckets: Sequence[Bucket], memory: torch.Tensor) -> list[torch.Tensor]:
    """The places of the buckets, uint8[num_bytes] each, one after another in uint8 memory[total_bytes]."""
    starts = accumulate((align(bucket.num_bytes) for bucket in buckets), initial=0)
    return [memory[at : at + bucket.num_bytes] for at, bucket in zip(starts, buckets, strict=False)]


def view_tensors(buckets: Sequence[Bucket], memory: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The tensors in buckets that lie there as `cut` says, with their names."""
    return [
        (slot.meta.name, data[slot.offset : slot.end].view(slot.meta.dtype).view(slot.meta.shape))
        for bucket, data in zip(buckets, cut(buckets, memory), strict=True)
        for slot in bucket.slots
    ]


def fill(data: torch.Tensor, pieces: Pieces) -> None:
    """Copy the pieces into a bucket, uint8 data[num_bytes]."""
    for offset, piece in pieces:
        # By numpy: torch would have other threads help, and they spin between pieces as small as these.
        np.copyto(data[offset : offset + len(piece)].numpy(), piece.numpy())


def gather(pieces: Pieces, num_bytes: int, buffer: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """A bucket, uint8[num_bytes]: a single tensor from where it is, several copied into a `buffer(num_bytes)`."""
    if len(pieces) == 1 and len(pieces[0][1]) == num_bytes:
        return pieces[0][1]
    data = buffer(num_bytes)
    fill(data, pieces)
    return data


def host_buffer(num_bytes: int) -> torch.Tensor:
    """Uninitialised uint8[num_bytes]; from numpy, which asks the kernel for huge pages: far fewer page faults."""
    return torch.from_numpy(np.empty(num_bytes, dtype=np.uint8))
