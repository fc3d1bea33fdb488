"""Requests to the model `llm` and their answers as Triton's gRPC messages: raw bytes beside names, types and shapes.

The tensors are those of model_repository/llm/config.pbtxt; the encoding is Triton's (KServe v2, raw contents).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

MODEL = "llm"
DTYPES: dict[str, type[np.generic]] = {"INT32": np.int32, "UINT32": np.uint32, "FP32": np.float32}


def build_request(tensors: Mapping[str, str | bool | bytes | list[bytes] | np.ndarray], request_id: str = "") -> Any:
    """A ModelInferRequest: strings and booleans as [1, 1], N bytes or an array [N] of int32 as [1, N].

    A list of B byte strings is [B, 1]: one for each of B inferences that travel together.
    """
    request = service_pb2.ModelInferRequest(  # ty: ignore[missing-attribute] - generated
        model_name=MODEL, id=request_id
    )
    for name, value in tensors.items():
        if isinstance(value, bytes):
            datatype, shape, raw = "UINT8", [1, len(value)], value
        elif isinstance(value, np.ndarray):
            datatype, shape, raw = "INT32", [1, value.size], value.astype("<i4", copy=False).tobytes()
        elif isinstance(value, bool):
            datatype, shape, raw = "BOOL", [1, 1], bytes([value])
        else:
            values = value if isinstance(value, list) else [value.encode()]
            # Triton's encoding of a string: its length as four bytes, little endian, then the string.
            raw = b"".join(len(each).to_bytes(4, "little") + each for each in values)
            datatype, shape = "BYTES", [len(values), 1]
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


def control_tensors(
    operation: str, arguments: Mapping[str, Any], key: str | None, payload: bytes | None
) -> dict[str, str | bytes]:
    """The tensors of a control request."""
    tensors: dict[str, str | bytes] = {"control_operation": operation, "control_arguments": json.dumps(arguments)}
    if key:
        tensors["control_key"] = key
    if payload is not None:
        tensors["control_payload"] = payload
    return tensors


def read_contents(response: Any) -> dict[str, bytes]:
    """A ModelInferResponse's tensors as they came."""
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
