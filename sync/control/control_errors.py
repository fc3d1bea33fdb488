"""Maps the codes of `tritonlive.wire.error_codes` to the errors of `sync.errors`."""

from collections.abc import Mapping
from types import MappingProxyType

from sync.errors import ConflictError, ControlError, InvalidError, RefusedError, UnavailableError
from tritonlive.wire.error_codes import ErrorCode, decode_error

ERRORS: Mapping[ErrorCode, type[ControlError]] = MappingProxyType(
    {
        ErrorCode.INVALID: InvalidError,
        ErrorCode.UNAUTHENTICATED: RefusedError,
        ErrorCode.REFUSED: RefusedError,
        ErrorCode.NOT_FOUND: InvalidError,
        ErrorCode.CONFLICT: ConflictError,
        ErrorCode.UNAVAILABLE: UnavailableError,
    }
)


def control_error(target: object, operation: str, message: str, code: ErrorCode) -> ControlError:
    """The error for an answer with `code`; ControlError itself for a code without a subclass."""
    return ERRORS.get(code, ControlError)(str(target), operation, message)


def triton_error(target: object, operation: str, text: str, otherwise: ErrorCode = ErrorCode.INTERNAL) -> ControlError:
    """The error for the message of a Triton error; `otherwise` is the code where the message has none."""
    message, code = decode_error(text)
    return control_error(target, operation, message, code or otherwise)
