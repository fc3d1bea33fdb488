"""Going back: every replica loads a kept version, or the checkpoint on its disk."""

from collections.abc import Sequence
from typing import Any

from sync.control.client import ControlClient
from sync.control.fleet import Fleet
from sync.deadline import Deadline
from sync.errors import ConflictError, SyncError
from tritonlive.wire.operations.engine import InFlightMode
from tritonlive.wire.states import WELL, State
from tritonlive.wire.versions import FIRST_VERSION

from .outcome_resolution import resolve
from .push_context import new_update_id

Status = dict[str, Any]
"""A replica's answer to `status`."""


def roll_back(fleet: Fleet, holder: str, to: str | None, in_flight: InFlightMode, deadline: Deadline) -> str:
    """Serve an earlier version again at every replica, and return it.

    to: the version. By default the newest that all replicas hold and that does not serve at all of them.
    holder: this trainer's name; a replica whose lease another trainer holds refuses.

    Raises ConflictError, with nothing changed, when there is no such version; CommitError as a push.
    """
    statuses = ask_statuses(fleet, deadline)
    _require_free(fleet, statuses, holder)
    version = to if to is not None else _common_version(fleet, statuses)
    _require_same_tensors(fleet, statuses, version)
    update_id = new_update_id()

    def restore(client: ControlClient, seconds: float) -> dict[str, Any]:
        return client.rollback(in_flight, seconds, to=version, update_id=update_id)

    outcome = resolve(fleet.attempt("rollback", restore, deadline), update_id, version)
    outcome.require()
    return version


def reload_checkpoint(fleet: Fleet, holder: str, version: str | None, deadline: Deadline) -> str:
    """Serve the checkpoint on the replicas' disks again, and return its version's name.

    version: required when the files have changed since the engines started.

    Raises ConflictError, with nothing changed, when it is required and missing at every replica; CommitError as a push.
    """
    update_id = new_update_id()
    _require_free(fleet, ask_statuses(fleet, deadline), holder)

    def load(client: ControlClient, seconds: float) -> dict[str, Any]:
        return client.reload(version, seconds, update_id=update_id)

    results = fleet.attempt("reload", load, deadline)
    errors = [result for result in results.values() if isinstance(result, SyncError)]
    if len(errors) == len(results):
        raise errors[0]
    outcome = resolve(results, update_id, version or FIRST_VERSION)
    outcome.require()
    return next(iter(outcome.committed.values()))["weight_version"]


def ask_statuses(fleet: Fleet, deadline: Deadline) -> list[Status]:
    """Every replica's status, in order. Raises ControlError, DeadlineError."""
    return fleet.each("status", lambda client, seconds: client.status(seconds), deadline)


def serves_its_version(status: Status) -> bool:
    """Whether the replica's weights are those of the version that it reports."""
    return status["state"] in WELL


def _common_version(fleet: Fleet, statuses: Sequence[Status]) -> str:
    """The newest version that all replicas hold, other than one that all serve. Raises ConflictError."""
    kept = [[entry["weight_version"] for entry in status.get("kept_versions", ())] for status in statuses]
    served = {status["weight_version"] if serves_its_version(status) else None for status in statuses}
    common = [version for version in kept[0] if {version} != served and all(version in other for other in kept)]
    if not common:
        held = "; ".join(
            f"{target} has {', '.join(versions) or 'none'}"
            for target, versions in zip(fleet.targets, kept, strict=True)
        )
        targets = ", ".join(fleet.targets)
        raise ConflictError(targets, "rollback", f"no previous version is kept at every replica: {held}")
    # A version that serves somewhere is newer than one that serves nowhere; otherwise the lists are oldest first.
    return max(common, key=lambda version: (version in served, common.index(version)))


def _require_free(fleet: Fleet, statuses: Sequence[Status], holder: str) -> None:
    """Raises ConflictError unless every replica would accept a change of its weights by this trainer now."""
    for target, status in zip(fleet.targets, statuses, strict=True):
        other = (status.get("lease") or {}).get("holder")
        if status["state"] in (State.UPDATING, State.RESTARTING) or other not in (None, holder):
            reason = status.get("reason") or f"trainer {other} is connected"
            raise ConflictError(target, "status", f"the replica is {status['state']}: {reason}")


def _require_same_tensors(fleet: Fleet, statuses: Sequence[Status], version: str) -> None:
    """Raises ConflictError unless every replica holds the version, with the same tensors."""
    digests: set[str] = set()
    for target, status in zip(fleet.targets, statuses, strict=True):
        entries = [entry for entry in status.get("kept_versions", ()) if entry["weight_version"] == version]
        if not entries:
            raise ConflictError(target, "rollback", f"no previous version is kept here as {version!r}")
        digests |= {entry["digest"] for entry in entries[-1:] if entry["digest"] is not None}
    if len(digests) > 1:
        targets = ", ".join(fleet.targets)
        raise ConflictError(targets, "rollback", f"the replicas hold different tensors as {version!r}")
