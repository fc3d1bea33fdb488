"""A fake of `triton_python_backend_utils`, which the model imports and only Triton's own process has."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class TritonError:
    """Fake of Triton's error class, which is compiled into its stub process."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.text, self.number = message, code


class TritonModelException(Exception):
    """Raised by a model that cannot be loaded."""


class Request(dict[str, np.ndarray]):
    """A Triton request as the model sees it, with the tensors given."""

    def __init__(self, parameters: str = "{}", **tensors: np.ndarray) -> None:
        super().__init__(tensors)
        self._parameters = parameters

    def inputs(self) -> list["InputTensor"]:
        return [InputTensor(name, array) for name, array in self.items()]

    def parameters(self) -> str:
        return self._parameters


class Metric:
    """One metric of a family."""

    def __init__(self) -> None:
        self.value = 0.0

    def increment(self, value: float) -> None:
        self.value += value

    def set(self, value: float) -> None:
        self.value = value


class MetricFamily:
    """A metric's name, description and kind."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.description, self.kind = name, description, kind

        self.metrics: dict[str, Metric] = {}
        """By the values of their labels."""

    def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802 - Triton's name
        return self.metrics.setdefault(",".join(labels.values()), Metric())


class InputTensor:
    """A request's tensor."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class Tensor:
    """An output tensor."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array


def get_input_tensor_by_name(request: Any, name: str) -> Any:
    """The input of that name, as Triton's function finds it; None without one."""
    return next((each for each in request.inputs() if each.name() == name), None)


def tensor(value: Any) -> np.ndarray:
    """The array that Triton makes of a value: [1, 1] of a scalar, [1, n] of a list."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str):
        return np.array([[value.encode()]], dtype=np.object_)
    if isinstance(value, bool):
        return np.array([[value]])
    return np.array([value], dtype=np.int32)


def ignore(_text: str) -> None:
    """Discard what the model logs."""


def install() -> None:
    """Install the fake where the model's imports find it."""
    stand_in = ModuleType("triton_python_backend_utils")
    vars(stand_in).update(
        TritonError=TritonError,
        TritonModelException=TritonModelException,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        InferenceResponse=SimpleNamespace,
        MetricFamily=MetricFamily,
        Tensor=Tensor,
        get_input_tensor_by_name=get_input_tensor_by_name,
        Logger=SimpleNamespace(log_warn=ignore, log_error=ignore, log_info=ignore),
    )
    sys.modules.setdefault(stand_in.__name__, stand_in)
