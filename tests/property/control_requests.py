"""Requests as Triton hands them to the model."""

import json
from typing import Any

from tests.triton_stand_in import Request, tensor


def control_request(operation: str, arguments: dict[str, Any], key: str) -> Request:
    """A control call as `Control.run` reads it."""
    values = {"control_operation": operation, "control_arguments": json.dumps(arguments), "control_key": key}
    return Request("{}", **{name: tensor(value) for name, value in values.items()})
