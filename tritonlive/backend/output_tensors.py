"""Arrays as Triton's output tensors, with the batch dimension of 1 in front."""

from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]
"""A response's tensors by their names in config.pbtxt."""


def batch(array: np.ndarray) -> np.ndarray:
    """`array` with the batch dimension: [1, …]."""
    return array[np.newaxis]


def strings(values: list[str]) -> np.ndarray:
    """A TYPE_STRING tensor [1, len(values)], UTF-8."""
    return batch(np.array([value.encode("utf-8", "surrogatepass") for value in values], dtype=np.object_))


def octets(payload: Any) -> np.ndarray:
    """A TYPE_UINT8 tensor [1, len(payload)] over bytes, or over any object with the buffer protocol."""
    return batch(np.frombuffer(payload, dtype=np.uint8))
