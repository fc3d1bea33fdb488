"""The model's modules outside of Triton, and requests as Triton hands them over."""

import importlib
import json
from typing import Any

from tests.triton_stand_in import Request, tensor


def model_module(name: str) -> Any:
    """model_module("control") → tritonlive/backend/control.py"""
    return importlib.import_module(f"tritonlive.backend.{name}")


def control_request(operation: str, arguments: dict[str, Any], key: str) -> Request:
    """A control call as `Control.run` reads it."""
    values = {"control_operation": operation, "control_arguments": json.dumps(arguments), "control_key": key}
    return Request("{}", **{name: tensor(value) for name, value in values.items()})
