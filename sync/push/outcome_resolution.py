"""The outcome of a commit at each replica; a replica whose answer was lost is asked again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sync.control.client import ControlClient
from sync.errors import CommitError, SyncError, UnknownOutcomeError

# How long to wait for a commit that still loads after its trainer's deadline.
RESOLVE_TIMEOUT_S = 30.0


@dataclass
class CommitOutcome:
    """The replicas, by the outcome of one commit."""

    version: str
    committed: dict[ControlClient, dict[str, Any]] = field(default_factory=dict)
    failed: dict[ControlClient, SyncError] = field(default_factory=dict)
    unknown: dict[ControlClient, SyncError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def require(self) -> None:
        """Raises CommitError unless all have committed, UnknownOutcomeError when a replica did not answer."""
        if not self.failed and not self.unknown:
            return
        kind = UnknownOutcomeError if self.unknown else CommitError
        error = kind(self.version, names(self.committed), by_name(self.failed), by_name(self.unknown))
        for note in self.notes:
            error.add_note(note)
        raise error


def resolve(
    results: Mapping[ControlClient, "dict[str, Any] | SyncError"], update_id: str, version: str
) -> CommitOutcome:
    """Sort the answers to a commit. A replica whose answer was lost is asked for the update's outcome.

    update_id: of the push, rollback or reload; the same at every replica.

    When some replicas have committed, the others are fenced: they must not serve the old weights any longer. The
    question ends the update at its replica, so the update cannot go live later.
    """
    outcome = CommitOutcome(version)
    for client, result in results.items():
        if isinstance(result, SyncError):
            _ask(client, result, update_id, outcome)
        else:
            outcome.committed[client] = result
    if outcome.committed:
        for client in [*outcome.failed, *outcome.unknown]:
            _fence(client, update_id, outcome)
    return outcome


def _ask(client: ControlClient, lost: SyncError, update_id: str, outcome: CommitOutcome) -> None:
    try:
        answer = client.abort_weight_update(str(lost), RESOLVE_TIMEOUT_S, update_id=update_id)
    except SyncError as problem:
        lost.add_note(f"asked for its outcome: {problem}")
        outcome.unknown[client] = lost
    else:
        if answer["is_live"]:
            outcome.committed[client] = answer["result"] or {}
        else:
            outcome.failed[client] = lost


def _fence(client: ControlClient, update_id: str, outcome: CommitOutcome) -> None:
    reason = f"{outcome.version} is live at {', '.join(names(outcome.committed))}"
    try:
        answer = client.fence(reason, RESOLVE_TIMEOUT_S, unless_committed=update_id)
    except SyncError as problem:
        outcome.notes.append(f"{client.target} could not be fenced: {problem}")
        return
    if answer["is_live"]:
        outcome.committed[client] = answer["result"] or {}
        outcome.failed.pop(client, None)
        outcome.unknown.pop(client, None)
    else:
        outcome.notes.append(f"{client.target} is fenced: it refuses to generate until a push commits there")


def names(clients: Mapping[ControlClient, Any]) -> list[str]:
    return [str(client.target) for client in clients]


def by_name(errors: Mapping[ControlClient, SyncError]) -> dict[str, BaseException]:
    return {str(client.target): error for client, error in errors.items()}
