"""The format of the frames that carry a push's bytes. Each frame lists the parts of tensors that it holds.

    frame, at most FRAME_BYTES:  [header, HEADER_BYTES: number of parts, then a table of PART]  [part]  [part]  …

A table entry is (index in the announcement, length, offset in the tensor). The parts' bytes follow in the table's
order, each at a multiple of ALIGNMENT. Tensors may come in any order, as the source yields them; the parts of one
tensor come from its beginning to its end. Large tensors are split over frames, small ones share a frame.
"""

from collections.abc import Sequence

import numpy as np

from sync.transport.layout import ALIGNMENT

# Small enough to stay in a processor's cache after a copy, large enough to make the messages about frames cheap.
FRAME_BYTES = 4 * 2**20
HEADER_BYTES = 16 * 2**10
PART = np.dtype([("tensor", "<u4"), ("length", "<u4"), ("offset", "<u8")])
MAX_PARTS = (HEADER_BYTES - ALIGNMENT) // PART.itemsize


def write_header(frame: np.ndarray, parts: Sequence[tuple[int, int, int]]) -> None:
    """Write the table of at most MAX_PARTS parts (index, length, offset) into uint8 frame[num_bytes]."""
    frame[:4].view("<u4")[0] = len(parts)
    frame[ALIGNMENT : ALIGNMENT + len(parts) * PART.itemsize].view(PART)[:] = np.array(list(parts), dtype=PART)


def read_header(frame: np.ndarray) -> list[tuple[int, int, int]]:
    """The parts (index, length, offset) of uint8 frame[num_bytes], at most MAX_PARTS whatever the header says."""
    count = min(int(frame[:4].view("<u4")[0]), MAX_PARTS)
    return frame[ALIGNMENT : ALIGNMENT + count * PART.itemsize].view(PART).tolist()
