"""The outcome of a push as JSON: rank 0 of a trainer sends it to the other ranks, which end the same way.

An error travels as the name of its class and its fields, so that every rank raises the same type. No pickle.
"""

from dataclasses import asdict
from typing import Any

from sync.errors import SyncError, TransferError

from .report import PushReport

EncodedOutcome = dict[str, Any]
"""{"report": fields} or {"error": {"type", "message", "fields"}}."""


def encode_report(report: PushReport) -> EncodedOutcome:
    return {"report": asdict(report)}


def encode_error(error: BaseException) -> EncodedOutcome:
    return {"error": _error_fields(error)}


def decode_outcome(outcome: EncodedOutcome, source: str) -> PushReport:
    """Return the report, or raise the error with a note that it comes from `source` ("rank 0")."""
    if "error" not in outcome:
        return PushReport(**{name: _frozen(value) for name, value in outcome["report"].items()})
    raise decode_error(outcome, source)


def decode_error(outcome: EncodedOutcome, source: str) -> SyncError:
    error = _read_error(outcome["error"])
    error.add_note(f"raised at {source}")
    return error


def _error_fields(error: BaseException) -> dict[str, Any]:
    kind = type(error).__name__
    if not isinstance(error, SyncError):
        return {"type": TransferError.__name__, "message": f"{kind}: {error}" if str(error) else kind, "fields": {}}
    return {"type": kind, "message": str(error), "fields": {name: _plain(value) for name, value in vars(error).items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseException):
        return {"error": _error_fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _read_error(fields: dict[str, Any]) -> SyncError:
    kind = _kinds().get(fields["type"], SyncError)
    error = kind.__new__(kind, fields["message"])
    # The classes have different constructors, so the attributes are set directly.
    Exception.__init__(error, fields["message"])
    for name, value in fields["fields"].items():
        if name != "__notes__":
            setattr(error, name, _frozen(value))
    for note in fields["fields"].get("__notes__", ()):
        error.add_note(note)
    return error


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples, as reports and errors hold them."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        if value.keys() == {"error"} and isinstance(value["error"], dict):
            return _read_error(value["error"])
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _kinds() -> dict[str, type[SyncError]]:
    found: dict[str, type[SyncError]] = {}
    waiting: list[type[SyncError]] = [SyncError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return found
