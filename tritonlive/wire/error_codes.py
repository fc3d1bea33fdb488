"""Error codes: what kind of error a caller got, how Triton names it, and which HTTP status a front end answers with.

A Triton error carries a message, and over a gRPC stream nothing else. So the model writes the code behind the message
(`encode_error`), and every reader splits it off again (`decode_error`). No other code parses a message.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import NamedTuple


class ErrorCode(StrEnum):
    """The values are what a message ends with, in brackets."""

    INVALID = "INVALID_ARG"
    """The request holds something that the model does not accept."""
    UNAUTHENTICATED = "UNAUTHENTICATED"
    """The inference key is missing or wrong."""
    REFUSED = "REFUSED"
    """The control key is missing or wrong, or control is off."""
    NOT_FOUND = "NOT_FOUND"
    """The request names something that does not exist."""
    CONFLICT = "ALREADY_EXISTS"
    """The replica's state does not allow the operation now."""
    UNAVAILABLE = "UNAVAILABLE"
    """The engine is down, or the replica refuses to generate; nothing was done."""
    BUSY = "BUSY"
    """The replica is well, and has too much to do for this request now."""
    UNSUPPORTED = "UNSUPPORTED"
    INTERNAL = "INTERNAL"
    CANCELLED = "CANCELLED"
    """The client has gone."""

    @property
    def triton_name(self) -> str:
        """The member of Triton's TritonError that comes closest."""
        return _TRITON_NAMES.get(self, self.value)

    @property
    def http_status(self) -> HTTPStatus:
        """HTTP status of the front end's answer."""
        return HTTP_STATUSES.get(self, HTTPStatus.INTERNAL_SERVER_ERROR)


# Triton has no code for a missing key, and none for too many requests.
_TRITON_NAMES: Mapping[ErrorCode, str] = MappingProxyType(
    {
        ErrorCode.UNAUTHENTICATED: ErrorCode.INVALID.value,
        ErrorCode.REFUSED: ErrorCode.INVALID.value,
        ErrorCode.BUSY: ErrorCode.UNAVAILABLE.value,
    }
)

HTTP_STATUSES: Mapping[ErrorCode, HTTPStatus] = MappingProxyType(
    {
        ErrorCode.INVALID: HTTPStatus.BAD_REQUEST,
        ErrorCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
        ErrorCode.REFUSED: HTTPStatus.FORBIDDEN,
        ErrorCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
        ErrorCode.CONFLICT: HTTPStatus.CONFLICT,
        ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
        ErrorCode.BUSY: HTTPStatus.TOO_MANY_REQUESTS,
    }
)

# Statuses that a front end, or a proxy before it, answers with besides those above.
_CODES_BY_STATUS: Mapping[int, ErrorCode] = MappingProxyType(
    {
        **{status: code for code, status in HTTP_STATUSES.items()},
        # A route that does not exist: the target is not a front end of ours, or the operation has no route.
        HTTPStatus.NOT_FOUND: ErrorCode.INVALID,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ErrorCode.INVALID,
        HTTPStatus.UNPROCESSABLE_ENTITY: ErrorCode.INVALID,
        HTTPStatus.BAD_GATEWAY: ErrorCode.UNAVAILABLE,
    }
)

_CODED = re.compile(rf"^(?P<message>.*) \[(?P<code>{'|'.join(ErrorCode)})\]$", re.DOTALL)

# Triton's own sentences, which come without a code. Triton answers the first while it stops or unloads the model, the
# second when it is asked whether the model is ready and it has begun to stop, and one of the third kind for every
# request after the model's process has ended. Triton 2.51 does not start that process again.
TRITON_UNKNOWN_MODEL = "Request for unknown model"
TRITON_STOPPING = "Server not ready"
_TRITON_MODEL_ENDED = re.compile(r"Stub process '.*' is not healthy")


class DecodedError(NamedTuple):
    """`message` without the code; `code` is None for an error of Triton's own that says nothing more."""

    message: str
    code: ErrorCode | None


def encode_error(message: str, code: ErrorCode) -> str:
    """The message of a Triton error."""
    return f"{message} [{code}]"


def decode_error(text: str) -> DecodedError:
    """Split the message of a Triton error into what `encode_error` joined."""
    if (match := _CODED.match(text)) is not None:
        return DecodedError(match["message"], ErrorCode(match["code"]))
    is_unavailable = TRITON_UNKNOWN_MODEL in text or has_model_ended(text)
    return DecodedError(text, ErrorCode.UNAVAILABLE if is_unavailable else None)


def has_model_ended(text: str) -> bool:
    """Whether this message of a Triton error says that the model's process has ended."""
    return _TRITON_MODEL_ENDED.search(text) is not None


def code_of_status(status: int) -> ErrorCode:
    """The code that an HTTP status stands for."""
    return _CODES_BY_STATUS.get(status, ErrorCode.INTERNAL)
