"""Triton's errors, as the exceptions vLLM's serving layer turns into HTTP answers."""

import re
from collections.abc import Sequence
from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError

# A gRPC stream carries an error's message but not its code, so the model writes the code after the message.
CODED = re.compile(r"^(?P<message>.*) \[(?P<code>[A-Z_]+)\]$", re.DOTALL)
# Triton itself answers this, without a code, while it stops or unloads the model.
NO_MODEL = "Request for unknown model"
STATUSES = {
    "INVALID_ARG": HTTPStatus.BAD_REQUEST,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "ALREADY_EXISTS": HTTPStatus.CONFLICT,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
}


class TritonError(GracefulHTTPError):
    """Triton's model refused a request; `http_status` is what the client gets."""

    @classmethod
    def parse(cls, text: str) -> "TritonError":
        """From the message of a Triton error."""
        match = CODED.match(text)
        if match is None:
            is_gone = text.startswith(NO_MODEL)
            return cls(text, HTTPStatus.SERVICE_UNAVAILABLE if is_gone else HTTPStatus.INTERNAL_SERVER_ERROR)
        status = STATUSES.get(match["code"], HTTPStatus.INTERNAL_SERVER_ERROR)
        return cls(match["message"], status)

    @property
    def is_unavailable(self) -> bool:
        """Whether the model did nothing and another replica may do it."""
        return self.http_status == HTTPStatus.SERVICE_UNAVAILABLE


class EngineUnavailable(TritonError):
    """No engine behind the front end: Triton is down, or its model is starting its engine again."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The engine is not available: {reason}", HTTPStatus.SERVICE_UNAVAILABLE)
        self.reason = reason


class SeveralReplicas(GracefulHTTPError):
    """422: an operation that a trainer must run at all replicas of a fleet together, not through this front end."""

    def __init__(self, operation: str, urls: Sequence[str]) -> None:
        targets = ", ".join(f'"grpc://{url}"' for url in urls)
        super().__init__(
            f"{operation}: this front end serves {len(urls)} replicas, and weights must change at all of them "
            f"together: address them yourself, WeightSync([{targets}])",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )


class IncompatibleServer(Exception):
    """The Triton server cannot be served by this front end; the message says what to change."""
