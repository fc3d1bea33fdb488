"""Reads a Triton request's input tensors; the errors for those that cannot be read."""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.limits import MAX_SAMPLING_PARAMETERS_BYTES


class RequestError(Exception):
    """An answer other than a result: the message and the code go back to the client (responses.py)."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INVALID) -> None:
        super().__init__(message)
        self.code = code


class BadTensor(RequestError):
    """An input tensor is missing, of the wrong shape, or holds what it must not; the message names it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")


class Refused(RequestError):
    """A key is missing or wrong, or control is off; the message names the tensor."""

    def __init__(self, name: str, problem: str, code: ErrorCode = ErrorCode.REFUSED) -> None:
        super().__init__(f"{name}: {problem}", code)


class Conflict(RequestError):
    """The replica's state does not allow the operation now; Triton answers 409."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.CONFLICT)


class Unavailable(RequestError):
    """The engine is down or coming back; Triton answers 503."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.UNAVAILABLE)


def read_array(request: Any, name: str) -> np.ndarray | None:
    """The tensor without its batch dimension (1-d), or None where the request lacks it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    array = tensor.as_numpy()
    if array.ndim != 2 or array.shape[0] != 1:
        raise BadTensor(
            name, f"shape {list(array.shape)}, expected [1, N]: send one prompt per request, Triton batches them"
        )
    return array[0]


def _read_scalar(request: Any, name: str) -> Any:
    array = read_array(request, name)
    if array is None:
        return None
    if array.size != 1:
        raise BadTensor(name, f"holds {array.size} values, expected 1")
    return array[0]


def read_string(request: Any, name: str) -> str | None:
    value = _read_scalar(request, name)
    if value is None:
        return None
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise BadTensor(name, f"is not UTF-8: {error}") from None


def read_batch(request: Any, name: str) -> list[bytes] | None:
    """The strings of a tensor [B, 1], one for each of the B inferences in a request; None where it lacks it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    array = tensor.as_numpy()
    if array.ndim != 2 or array.shape[1] != 1:
        raise BadTensor(name, f"shape {list(array.shape)}, expected [B, 1]")
    return array[:, 0].tolist()


def read_bool(request: Any, name: str, default: bool | None = False) -> bool | None:
    value = _read_scalar(request, name)
    return default if value is None else bool(value)


def read_bytes(request: Any, name: str) -> bytes | None:
    array = read_array(request, name)
    return None if array is None else array.tobytes()


def read_json_object(request: Any, name: str) -> dict[str, Any] | None:
    text = read_string(request, name)
    return None if text is None else parse_json_object(name, text)


def read_parameters(request: Any) -> dict[str, Any]:
    """The request's parameters, which are no tensors, by name. Raises BadTensor."""
    return parse_parameters("parameters", request.parameters())


def parse_parameters(source: str, text: str) -> dict[str, Any]:
    """Sampling parameters, or a request's parameters, from JSON of limited size. Raises BadTensor with `source`."""
    if len(text) > MAX_SAMPLING_PARAMETERS_BYTES:
        raise BadTensor(source, f"{len(text)} characters, at most {MAX_SAMPLING_PARAMETERS_BYTES} are allowed")
    return parse_json_object(source, text)


def _refuse_constant(name: str) -> None:
    """NaN and Infinity, which Python reads and JSON lacks."""
    raise ValueError(f"{name} is not a JSON number")


def parse_json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadTensor(name, f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadTensor(name, f"is a JSON {type(value).__name__}, expected an object")
    return value
