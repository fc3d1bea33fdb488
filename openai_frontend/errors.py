"""Exceptions for Triton's errors. Free of vLLM, whose import takes ten seconds: the bridge needs none."""

from collections.abc import Sequence
from http import HTTPStatus

from tritonlive.wire.error_codes import ErrorCode, decode_error


class TritonError(Exception):
    """Triton's model refused a request. `http_status` is the status of the client's answer."""

    def __init__(self, message: str, http_status: HTTPStatus) -> None:
        super().__init__(message)
        self.message = message
        self.http_status = http_status

    @classmethod
    def parse(cls, text: str) -> "TritonError":
        """Parse the message of a Triton error."""
        message, code = decode_error(text)
        return cls(message, (code or ErrorCode.INTERNAL).http_status)

    @property
    def is_unavailable(self) -> bool:
        """Whether the model did nothing, so that another replica may run the request."""
        return self.http_status == HTTPStatus.SERVICE_UNAVAILABLE


class EngineUnavailable(TritonError):
    """The front end has no engine: Triton is down, or its model restarts its engine."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The engine is not available: {reason}", HTTPStatus.SERVICE_UNAVAILABLE)
        self.reason = reason


class SeveralReplicas(TritonError):
    """422: the trainer must run this operation at all replicas of the fleet itself, not through this front end."""

    def __init__(self, operation: str, urls: Sequence[str]) -> None:
        targets = ", ".join(f'"grpc://{url}"' for url in urls)
        super().__init__(
            f"{operation}: this front end serves {len(urls)} replicas, and weights must change at all of them "
            f"together: connect to them directly, WeightSync([{targets}])",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )
