"""Data that all control calls of one push share."""

import secrets
from dataclasses import dataclass, field
from typing import Literal

from sync.deadline import Deadline

InFlight = Literal["keep", "wait", "abort"]
"""What a commit does with running requests: they continue, the commit waits for them, or they end."""


def new_update_id() -> str:
    """A random id for a push, a rollback or a reload: 16 hex digits."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class PushContext:
    """One push: made when it starts, and never changed."""

    version: str
    """Version that responses report after the commit."""
    in_flight: InFlight
    deadline: Deadline
    """Every call of the push ends by then."""
    is_partial: bool = False
    """Whether the tensors that are not sent keep their values."""
    update_id: str = field(default_factory=new_update_id)
    """The same at every replica. The replicas report the push's outcome by this id."""
