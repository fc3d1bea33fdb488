"""The tensors of requests to the model `llm` and of its answers: raw bytes beside names, types and shapes.

The tensors are those of model_repository/llm/config.pbtxt; the encoding is Triton's (KServe v2, raw contents).
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .tensor_names import CONTROL_ARGUMENTS, CONTROL_KEY, CONTROL_OPERATION, CONTROL_PAYLOAD

DTYPES: dict[str, type[np.generic]] = {"INT32": np.int32, "UINT32": np.uint32, "FP32": np.float32}


class EncodedTensor(NamedTuple):
    """A tensor as it travels: Triton's type, shape, and raw contents."""

    datatype: str
    shape: list[int]
    contents: bytes


def encode_tensor(value: str | bool | bytes | list[bytes] | np.ndarray) -> EncodedTensor:
    """Strings and booleans as [1, 1], N bytes or an array [N] of int32 as [1, N].

    A list of B byte strings is [B, 1]: one for each of B inferences that travel together.
    """
    if isinstance(value, bytes):
        return EncodedTensor("UINT8", [1, len(value)], value)
    if isinstance(value, np.ndarray):
        return EncodedTensor("INT32", [1, value.size], value.astype("<i4", copy=False).tobytes())
    if isinstance(value, bool):
        return EncodedTensor("BOOL", [1, 1], bytes([value]))
    values = value if isinstance(value, list) else [value.encode()]
    # Triton's encoding of a string: its length as four bytes, little endian, then the string.
    contents = b"".join(len(each).to_bytes(4, "little") + each for each in values)
    return EncodedTensor("BYTES", [len(values), 1], contents)


def control_tensors(
    operation: str, arguments: Mapping[str, Any], key: str | None, payload: bytes | None
) -> dict[str, str | bytes]:
    """The tensors of a control request."""
    tensors: dict[str, str | bytes] = {CONTROL_OPERATION: operation, CONTROL_ARGUMENTS: json.dumps(arguments)}
    if key:
        tensors[CONTROL_KEY] = key
    if payload is not None:
        tensors[CONTROL_PAYLOAD] = payload
    return tensors


def read_contents(response: Any) -> dict[str, bytes]:
    """The raw contents of a ModelInferResponse's tensors, by name."""
    names = (output.name for output in response.outputs)
    return dict(zip(names, response.raw_output_contents, strict=True))


def read_arrays(response: Any) -> dict[str, np.ndarray]:
    """A ModelInferResponse's numeric tensors without their batch dimension; views of the message, read-only."""
    return {
        output.name: np.frombuffer(raw, DTYPES[output.datatype]).reshape(tuple(output.shape)[1:])
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        if output.datatype in DTYPES
    }


def read_texts(response: Any) -> dict[str, list[str]]:
    """A ModelInferResponse's string tensors, flat."""
    return {
        output.name: read_strings(raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        if output.datatype == "BYTES"
    }


def read_strings(raw: bytes) -> list[str]:
    """The strings of a BYTES tensor."""
    strings, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        strings.append(raw[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return strings
