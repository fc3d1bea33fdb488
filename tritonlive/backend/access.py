"""Checks the key that a Triton request brings: Triton's own ports have no keys."""

from typing import Any

from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.keys import matches
from tritonlive.wire.tensor_names import API_KEY, CONTROL_KEY

from .settings import Settings
from .tensors import Refused, read_parameters, read_string


class Access:
    """The checks, against the keys of the model's settings. Both raise Refused."""

    def __init__(self, settings: Settings) -> None:
        self._control = settings.control_key
        # As at a front end, whoever may change the weights may also generate.
        self._inference = (*settings.api_keys, *([settings.control_key] if settings.control_key else ()))
        self._is_inference_open = not settings.api_keys

    def require_inference(self, request: Any) -> None:
        """Check the key of a native request, or of a front end that opens its channel."""
        if self._is_inference_open or matches(_inference_key(request), self._inference):
            return
        problem = f"missing or wrong: the server was started with {API_KEY_VARIABLE}, so send one of its keys"
        raise Refused(API_KEY, problem, ErrorCode.UNAUTHENTICATED)

    def require_control(self, request: Any) -> None:
        """Check the key of a control request."""
        if self._control is None:
            raise Refused(CONTROL_KEY, f"control is off: the server was started without {CONTROL_KEY_VARIABLE}")
        if not matches(read_string(request, CONTROL_KEY), [self._control]):
            raise Refused(CONTROL_KEY, "missing or wrong")


def _inference_key(request: Any) -> str | None:
    """The tensor api_key; without it the request parameter, for clients that cannot add a tensor."""
    key = read_string(request, API_KEY)
    if key is None and API_KEY in request.parameters():
        key = read_parameters(request).get(API_KEY)
    return key if isinstance(key, str) else None
