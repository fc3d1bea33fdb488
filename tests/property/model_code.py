"""The model's modules (model_repository/llm/1), imported outside of Triton, and requests as Triton hands them over."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.model.conftest import MODEL_FOLDER, Request, TritonError, get_input_tensor_by_name, tensor


def install_triton() -> None:
    """Put a stand-in for Triton's own module, and the model's folder, where imports find them."""
    backend = ModuleType("triton_python_backend_utils")
    vars(backend).update(
        TritonError=TritonError,
        TritonModelException=type("TritonModelException", (Exception,), {}),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        InferenceResponse=SimpleNamespace,
        get_input_tensor_by_name=get_input_tensor_by_name,
        Logger=SimpleNamespace(log_warn=ignore, log_error=ignore, log_info=ignore),
    )
    sys.modules[backend.__name__] = backend
    if str(MODEL_FOLDER) not in sys.path:
        sys.path.insert(0, str(MODEL_FOLDER))


def ignore(_text: str) -> None:
    """What the model logs is not read here."""


def model_module(name: str) -> Any:
    """model_module("weights") → model_repository/llm/1/weights.py"""
    return importlib.import_module(f"1.{name}")


def control_request(operation: str, arguments: dict[str, Any], key: str) -> Request:
    """A control call as `Control.run` reads it."""
    values = {"control_operation": operation, "control_arguments": json.dumps(arguments), "control_key": key}
    return Request("{}", **{name: tensor(value) for name, value in values.items()})
