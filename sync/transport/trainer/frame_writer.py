"""Packing a source's tensors into frames."""

from collections.abc import Sequence

import numpy as np
import torch
import xxhash

from sync.errors import SourceError
from sync.transport.frames import FRAME_BYTES, HEADER_BYTES, MAX_PARTS, write_header
from sync.transport.layout import align
from sync.weights.weight_source import ParamMeta

from .frame_sender import FrameSender


class FrameWriter:
    """Packs tensors into frames, in any order. `write` copies the bytes, so the source may reuse its memory."""

    def __init__(self, metas: Sequence[ParamMeta], sender: FrameSender) -> None:
        self._metas = metas
        self._indices = {meta.name: index for index, meta in enumerate(metas)}
        self._digests: list[int | None] = [None] * len(metas)
        self._sender = sender
        self._frame: np.ndarray | None = None
        self._parts: list[tuple[int, int, int]] = []
        self._end = HEADER_BYTES  # end of the frame's parts so far, a multiple of ALIGNMENT

    @torch.no_grad()
    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Send one tensor. Its last bytes may wait in a frame for the next tensor.

        Raises SourceError when the tensor differs from its announcement, or was written before; TransferError.
        """
        index = self._check(name, tensor)
        data = tensor.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        hasher = xxhash.xxh3_64()
        sent = 0
        while sent < len(data):
            sent += self._write_part(index, data, sent, hasher)
        self._digests[index] = hasher.intdigest()

    def finish(self) -> list[int]:
        """Send the last frame. Returns the tensors' digests (weights/digest.py), in the order announced.

        Raises SourceError when a tensor is missing; TransferError.
        """
        if missing := [meta.name for meta, digest in zip(self._metas, self._digests, strict=True) if digest is None]:
            raise SourceError(f"weights: announced, but not yielded: {', '.join(missing)}")
        if self._parts:
            self._send()
        self._sender.flush()
        return [digest for digest in self._digests if digest is not None]

    def _check(self, name: str, tensor: torch.Tensor) -> int:
        index = self._indices.get(name)
        if index is None:
            raise SourceError(f"weights: {name} was yielded, but not announced")
        if self._digests[index] is not None:
            raise SourceError(f"weights: {name} was yielded twice")
        meta, found = self._metas[index], ParamMeta.of(name, tensor)
        if (found.dtype_name, found.shape) != (meta.dtype_name, tuple(meta.shape)):
            raise SourceError(f"weights: {name} was announced as {meta}, but yielded as {found}")
        return index

    def _write_part(self, index: int, data: np.ndarray, offset: int, hasher: "xxhash.xxh3_64") -> int:
        """Copy as much of data[offset:] as fits into the current frame; returns the length of that part."""
        if self._frame is None:
            self._frame = self._sender.free_frame()
        length = min(len(data) - offset, FRAME_BYTES - self._end)
        place = self._frame[self._end : self._end + length]
        # By numpy: torch would have other threads help, and they spin between parts as small as these.
        np.copyto(place, data[offset : offset + length])
        hasher.update(place)  # ty: ignore[invalid-argument-type] (numpy 1's arrays are not typed as buffers)
        self._parts.append((index, length, offset))
        self._end = align(self._end + length)
        if self._end >= FRAME_BYTES or len(self._parts) == MAX_PARTS:
            self._send()
        return length

    def _send(self) -> None:
        frame, self._frame = self._frame, None
        if frame is not None:
            write_header(frame, self._parts)
            self._sender.send(min(self._end, FRAME_BYTES))
        self._parts, self._end = [], HEADER_BYTES
