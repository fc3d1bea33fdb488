"""Assembling an update from its frames, and checking it on the way."""

import numpy as np
import torch
import xxhash

from sync.errors import TransferError
from sync.transport.frames import HEADER_BYTES, read_header
from sync.transport.layout import Layout, align
from sync.weights.digest import EMPTY_DIGEST
from sync.weights.findings import Findings
from sync.weights.finite import is_finite


class Assembler:
    """Copies each part into its tensor, and digests and checks it while it is in the processor's cache."""

    def __init__(self, layout: Layout, memory: torch.Tensor) -> None:
        """memory: uint8[layout.num_bytes]. Nothing else may write to it."""
        self._layout = layout
        self._memory = memory.numpy()
        self._dtypes = [meta.dtype for meta in layout.metas]
        self._arrived = [0] * len(layout.metas)  # bytes of each tensor
        self._hashers: dict[int, xxhash.xxh3_64] = {}  # of tensors that have arrived in part
        self._digests = [EMPTY_DIGEST] * len(layout.metas)
        self._are_finite = [True] * len(layout.metas)

    def add(self, frame: np.ndarray) -> None:
        """Copy the parts of uint8 frame[num_bytes] into their tensors.

        Raises TransferError when a part belongs to no announced tensor, or does not start where the tensor's last part
        ended. So no byte arrives twice, and none is left out.
        """
        if len(frame) < HEADER_BYTES:
            raise TransferError(f"a frame of {len(frame)} bytes is shorter than its header")
        start = HEADER_BYTES
        for index, length, offset in read_header(frame):
            if index >= len(self._arrived):
                raise TransferError(f"a frame has a part of tensor {index}, but {len(self._arrived)} were announced")
            end = offset + length
            if offset != self._arrived[index] or end > self._layout.sizes[index] or start + length > len(frame):
                where = f"bytes {offset} to {end} of {self._layout.metas[index].name}"
                raise TransferError(f"a frame has {where}, which does not go on where the last part ended")
            at = self._layout.offsets[index] + offset
            self._copy(index, self._memory[at : at + length], frame[start : start + length])
            start = align(start + length)

    def finish(self) -> Findings:
        """The findings of all tensors. Raises TransferError when a tensor is incomplete."""
        sized = zip(self._layout.metas, self._arrived, self._layout.sizes, strict=True)
        if missing := [meta.name for meta, arrived, size in sized if arrived != size]:
            raise TransferError(f"not arrived whole: {', '.join(missing)}")
        return Findings(self._digests, self._are_finite)

    def _copy(self, index: int, target: np.ndarray, data: np.ndarray) -> None:
        # By numpy, in this thread: torch would use the threads that generate.
        np.copyto(target, data)
        hasher = self._hashers.setdefault(index, xxhash.xxh3_64())
        hasher.update(target)  # ty: ignore[invalid-argument-type] (numpy 1's arrays are not typed as buffers)
        if self._are_finite[index]:
            self._are_finite[index] = is_finite(target, self._dtypes[index])
        self._arrived[index] += len(target)
        if self._arrived[index] == self._layout.sizes[index]:
            self._digests[index] = hasher.intdigest()
            del self._hashers[index]
