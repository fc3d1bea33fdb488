"""Requests to the model as Triton's gRPC messages. Apart from wire, which needs no gRPC."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from tritonlive.wire.tensor_names import MODEL
from tritonlive.wire.triton_tensors import encode_tensor


def build_request(tensors: Mapping[str, str | bool | bytes | list[bytes] | np.ndarray], request_id: str = "") -> Any:
    """A ModelInferRequest; see `encode_tensor` for the shapes."""
    request = service_pb2.ModelInferRequest(  # ty: ignore[missing-attribute] - generated
        model_name=MODEL, id=request_id
    )
    for name, value in tensors.items():
        datatype, shape, contents = encode_tensor(value)
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(contents)
    return request
