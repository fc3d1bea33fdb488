"""Outcomes of weight operations, as codes: what a worker and a replica answer."""

from enum import StrEnum


class Code(StrEnum):
    """Outcome of an operation at one worker."""

    OK = "ok"
    REJECTED = "rejected"
    """The update is not acceptable (NaN, wrong tensors). The model is untouched."""
    NOT_HELD = "not_held"
    """The worker does not hold the version asked for. The model is untouched."""
    FAILED = "failed"
    """The operation failed before it touched the model."""
    TOUCHED = "touched"
    """The operation failed while it replaced weights: what the model holds is unknown."""


class Outcome(StrEnum):
    """Outcome of an update (a push, a rollback or a reload) at one replica."""

    RUNNING = "running"
    COMMITTED = "committed"
    UNCHANGED = "unchanged"
    """Committed; every rank held these tensors already, so that only the version's name changed."""
    FAILED = "failed"
    ABORTED = "aborted"


COMMITS = frozenset({Outcome.COMMITTED, Outcome.UNCHANGED})
"""Outcomes after which the replica serves the update's version."""

FAILURES = frozenset({Outcome.FAILED, Outcome.ABORTED})
"""Outcomes after which it does not, and its trainer has left."""


# The id of the version that an engine loads from disk when it starts; pushes have random ids.
CHECKPOINT_ID = "checkpoint"
