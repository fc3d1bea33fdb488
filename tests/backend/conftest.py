"""The model's modules, imported as Triton does: the version folder is a package named "1"."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

MODEL_FOLDER = Path(__file__).parents[2] / "model_repository" / "llm"


class TritonError:
    """Triton's own is compiled into its stub process."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.text, self.number = message, code


def get_input_tensor_by_name(request: dict[str, np.ndarray], name: str) -> SimpleNamespace | None:
    return SimpleNamespace(as_numpy=lambda: request[name]) if name in request else None


@pytest.fixture(scope="session")
def load() -> Iterator[Callable[[str], ModuleType]]:
    """load("settings") → model_repository/llm/1/settings.py"""
    backend = ModuleType("triton_python_backend_utils")
    members: dict[str, Any] = {
        "TritonError": TritonError,
        "TritonModelException": type("TritonModelException", (Exception,), {}),
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": 1,
        "InferenceResponse": SimpleNamespace,
        "get_input_tensor_by_name": get_input_tensor_by_name,
        "Logger": SimpleNamespace(log_warn=lambda text: None, log_error=lambda text: None, log_info=lambda text: None),
    }
    vars(backend).update(members)
    sys.modules[backend.__name__] = backend
    sys.path.insert(0, str(MODEL_FOLDER))
    yield lambda name: importlib.import_module(f"1.{name}")
    sys.path.remove(str(MODEL_FOLDER))
    del sys.modules[backend.__name__]


class Request(dict[str, np.ndarray]):
    """A Triton request as the model sees it, with the tensors given."""

    def __init__(self, parameters: str = "{}", **tensors: np.ndarray) -> None:
        super().__init__(tensors)
        self._parameters = parameters

    def parameters(self) -> str:
        return self._parameters


@pytest.fixture(scope="session")
def request_of() -> Callable[..., Request]:
    """request_of(text_input="hi", stream=True, input_ids=[1, 2]) with shapes as Triton gives them."""

    def build(parameters: str = "{}", **values: Any) -> Request:
        return Request(parameters, **{name: tensor(value) for name, value in values.items()})

    return build


def tensor(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str):
        return np.array([[value.encode()]], dtype=np.object_)
    if isinstance(value, bool):
        return np.array([[value]])
    return np.array([value], dtype=np.int32)
