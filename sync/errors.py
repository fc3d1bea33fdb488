"""The errors of this package, in one tree.

SyncError
├── TargetError          the target is not an address this client understands
├── SourceError          the given weights are not weights that can be pushed
├── ControlError         a replica answered a control call with an error
│   ├── RefusedError     the control key is missing or wrong (HTTP 401, 403)
│   ├── ConflictError    the replica's state does not allow it now (409)
│   ├── InvalidError     the replica does not accept the arguments (400, 404, 413, 422)
│   └── UnavailableError no server answers, or the engine is down (502, 503, connection refused)
├── DeadlineError        the deadline passed first
├── CheckError           the weights do not fit the served model; lists every mismatch
├── TransferError        the bytes did not arrive complete; no replica changed
│   ├── RejectedError    a worker rejects the announcement, or what arrived
│   └── ChangedError     the weights changed while the push was reading them
├── VerifyError          a replica's logprobs differ from those of the trainer's own model
└── CommitError          some replicas committed the new weights and others did not
    └── UnknownOutcomeError  a replica does not report whether it committed
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritonlive.wire.rejection import Rejection


class SyncError(Exception):
    """Base of every error that `sync` raises."""


class TargetError(SyncError, ValueError):
    """The target is not an address this client understands."""


class SourceError(SyncError, TypeError):
    """The given weights are neither a module, nor a mapping, nor pairs of name and tensor."""


class ControlError(SyncError):
    """A replica answered a control call with an error."""

    def __init__(self, target: str, operation: str, message: str) -> None:
        super().__init__(f"{target}: {operation}: {message}")
        self.target = target
        self.operation = operation
        self.message = message


class RefusedError(ControlError):
    """The control key is missing or wrong."""


class ConflictError(ControlError):
    """The replica's state does not allow the operation now."""


class InvalidError(ControlError):
    """The replica does not accept the operation's arguments."""


class UnavailableError(ControlError):
    """No server answers at the target, or its engine is down."""


class DeadlineError(SyncError, TimeoutError):
    """The deadline passed before the work was done."""


class CheckError(SyncError):
    """The weights do not fit the served model. `mismatches` lists every reason."""

    def __init__(self, target: str, mismatches: Iterable[str]) -> None:
        self.target = target
        self.mismatches = tuple(mismatches)
        lines = "".join(f"\n  {mismatch}" for mismatch in self.mismatches)
        super().__init__(
            f"{target}: the weights do not fit the served model, {len(self.mismatches)} mismatches:{lines}"
        )


class TransferError(SyncError):
    """The bytes did not arrive complete. No replica changed its weights."""


class RejectedError(TransferError):
    """A worker rejects the announcement, or found NaN or Inf in what arrived.

    `rejections` has the reason of each of these workers (tritonlive/wire/rejection.py), by rank.
    """

    def __init__(self, message: str, rejections: "Mapping[int, Rejection] | None" = None) -> None:
        super().__init__(message)
        self.rejections = dict(rejections or {})


class ChangedError(TransferError):
    """The weights changed while the push read them, for example by an optimizer step. No replica changed."""


class VerifyError(SyncError):
    """A replica's logprobs differ from those of the trainer's own model."""


class CommitError(SyncError):
    """Some replicas committed the new weights and others did not: `committed` and `failed` name them."""

    def __init__(
        self,
        version: str,
        committed: Iterable[str],
        failed: Mapping[str, BaseException],
        unknown: Mapping[str, BaseException] | None = None,
    ) -> None:
        self.version = version
        self.committed = tuple(committed)
        self.failed = dict(failed)
        self.unknown = dict(unknown or {})
        parts = [f"{version} is live at {', '.join(self.committed) or 'no replica'}"]
        if self.failed:
            parts.append("failed at " + "; ".join(f"{target}: {error}" for target, error in self.failed.items()))
        if self.unknown:
            reasons = "; ".join(f"{target}: {error}" for target, error in self.unknown.items())
            parts.append(f"it is not known whether it is live at {reasons}")
        super().__init__(", but ".join(parts))


class UnknownOutcomeError(CommitError):
    """A replica received the commit, and does not report whether it committed: `unknown` names it.

    When it answers again, `status()` or `catch_up` finds out. A front end over the fleet leaves it out until then.
    """
