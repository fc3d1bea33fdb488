"""CUDA IPC handles as JSON, so that no pickle is on a wire.

A handle is the argument tuple of `torch.multiprocessing.reductions.rebuild_cuda_tensor`, as `reduce_tensor` makes it.
On the wire it is a list of these fields in order, without the two classes, which are always the same. Bytes travel as
base64, a dtype as its name.
"""

import base64
import binascii
from typing import Any

import torch
from torch.storage import TypedStorage

# Positions of the classes in the tuple, and the only class that is accepted there.
CLASSES: dict[int, type] = {0: torch.Tensor, 4: TypedStorage}
SIZE, STRIDE, DTYPE = 1, 2, 5
BYTES = (7, 11, 13)  # memory handle, reference counter's handle, event handle
BOOLEANS = (10, 14)
NUM_FIELDS = 15

Handles = dict[str, tuple[Any, ...]] | list[dict[str, tuple[Any, ...]]]


def encode_handles(handles: Handles) -> Any:
    """vLLM's `ipc_handles` ({GPU UUID: arguments}, or a list of such) as JSON."""
    if isinstance(handles, list):
        return [encode_handles(handle) for handle in handles]
    return {uuid: _encode(arguments) for uuid, arguments in handles.items()}


def decode_handles(wire: Any) -> Handles:
    """The inverse of `encode_handles`. Raises ValueError for anything that `encode_handles` does not produce."""
    if isinstance(wire, list):
        return [_decode_one(handle) for handle in wire]
    return _decode_one(wire)


def _decode_one(wire: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(wire, dict):
        raise ValueError(f"ipc_handles: expected an object with GPU UUIDs, got {type(wire).__name__}")
    return {str(uuid): _decode(fields) for uuid, fields in wire.items()}


def _encode(arguments: tuple[Any, ...]) -> list[Any]:
    if len(arguments) != NUM_FIELDS:
        raise ValueError(f"ipc_handles: this torch makes {len(arguments)} fields, {NUM_FIELDS} are known")
    fields: list[Any] = []
    for position, value in enumerate(arguments):
        if position in CLASSES:
            continue
        if position in BYTES:
            fields.append(base64.b64encode(value).decode())
        elif position == DTYPE:
            fields.append(str(value).removeprefix("torch."))
        elif position in (SIZE, STRIDE):
            fields.append(list(value))
        else:
            fields.append(value)
    return fields


def _decode(fields: Any) -> tuple[Any, ...]:
    if not isinstance(fields, list) or len(fields) != NUM_FIELDS - len(CLASSES):
        raise ValueError(f"ipc_handles: expected a list of {NUM_FIELDS - len(CLASSES)} fields")
    values = iter(fields)
    return tuple(CLASSES[p] if p in CLASSES else _decode_field(p, next(values)) for p in range(NUM_FIELDS))


def _decode_field(position: int, value: Any) -> Any:
    if position in BYTES:
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise ValueError(f"ipc_handles: field {position} is not base64") from None
    if position == DTYPE:
        dtype = getattr(torch, value, None) if isinstance(value, str) else None
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"ipc_handles: {value!r} is not a dtype")
        return dtype
    if position in (SIZE, STRIDE):
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise ValueError(f"ipc_handles: field {position} is not a list of integers")
        return torch.Size(value) if position == SIZE else tuple(value)
    if type(value) is not (bool if position in BOOLEANS else int):
        raise ValueError(f"ipc_handles: field {position} has the wrong type")
    return value
