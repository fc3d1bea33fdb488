"""The control client for a target."""

from .client import DEFAULT_TIMEOUT_S, ControlClient
from .target import Target


def connect(target: Target, timeout: float = DEFAULT_TIMEOUT_S) -> ControlClient:
    """The client for the target's scheme; opens no connection yet."""
    if target.is_grpc:
        from .grpc_control import GrpcControl

        return GrpcControl(target, timeout)
    from .http_control import HttpControl

    return HttpControl(target, timeout)
