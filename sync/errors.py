"""Everything that can go wrong with a push, in one tree.

SyncError
├── TargetError          the target is not an address this client understands
├── SourceError          what was given as weights is not weights
├── ControlError         a replica answered a control call with an error
│   ├── RefusedError     no control key, or the wrong one (HTTP 401, 403)
│   ├── ConflictError    the replica's state does not allow it now (409)
│   ├── InvalidError     the replica does not accept the arguments (400, 404, 413, 422)
│   └── UnavailableError nobody answers, or the engine is down (502, 503, connection refused)
├── DeadlineError        the deadline passed first
├── CheckError           the weights do not fit the served model; lists every mismatch
├── TransferError        the bytes did not arrive whole; no replica changed
│   ├── RejectedError    a worker does not take what was announced, or what arrived
│   └── ChangedError     the weights changed while the push was reading them
├── VerifyError          a replica answers otherwise than the trainer's own model does
└── CommitError          some replicas took the new weights and others did not
    └── UnknownOutcomeError  a replica cannot be asked what became of its commit
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritonlive.wire.rejection import Rejection


class SyncError(Exception):
    """Base of every error that `sync` raises by itself."""


class TargetError(SyncError, ValueError):
    """The target is not an address this client understands."""


class SourceError(SyncError, TypeError):
    """What was given as weights is neither a module, nor a mapping, nor pairs of name and tensor."""


class ControlError(SyncError):
    """A replica answered a control call with an error."""

    def __init__(self, target: str, operation: str, message: str) -> None:
        super().__init__(f"{target}: {operation}: {message}")
        self.target = target
        self.operation = operation
        self.message = message


class RefusedError(ControlError):
    """The replica wants the control key, or another one than it got."""


class ConflictError(ControlError):
    """The replica's state does not allow the operation now."""


class InvalidError(ControlError):
    """The replica does not accept the operation's arguments."""


class UnavailableError(ControlError):
    """Nobody answers at the target, or its engine is down."""


class DeadlineError(SyncError, TimeoutError):
    """The deadline passed before the work was done."""


class CheckError(SyncError):
    """The weights do not fit the served model."""

    def __init__(self, target: str, mismatches: Iterable[str]) -> None:
        self.target = target
        self.mismatches = tuple(mismatches)
        lines = "".join(f"\n  {mismatch}" for mismatch in self.mismatches)
        super().__init__(
            f"{target}: the weights do not fit the served model, {len(self.mismatches)} mismatches:{lines}"
        )


class TransferError(SyncError):
    """The bytes did not arrive whole. No replica changed its weights."""


class RejectedError(TransferError):
    """A worker does not take what was announced, or found NaN or Inf in what arrived.

    `rejections` has what each of these workers said (rejection.py), by rank.
    """

    def __init__(self, message: str, rejections: "Mapping[int, Rejection] | None" = None) -> None:
        super().__init__(message)
        self.rejections = dict(rejections or {})


class ChangedError(TransferError):
    """The weights changed while the push was reading them, as by a step of the optimizer. No replica changed."""


class VerifyError(SyncError):
    """A replica answers otherwise than the trainer's own model does."""


class CommitError(SyncError):
    """Some replicas took the new weights and others did not: `committed` and `failed` name them."""

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
    """A replica was asked to commit, and cannot be reached to say whether it did: `unknown` names it.

    `status()` or `catch_up` finds out when it answers again; a front end over the fleet leaves it out until then.
    """
