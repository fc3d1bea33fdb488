"""Data that all control calls of one push share."""

import secrets
from dataclasses import dataclass, field

from sync.deadline import Deadline
from tritonlive.wire.operations.engine import InFlightMode


def new_update_id() -> str:
    """A random id for a push, a rollback or a reload: 16 hex digits."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class PushContext:
    """One push: made when it starts, and never changed."""

    version: str
    """Version that responses report after the commit."""
    in_flight: InFlightMode
    """What the commit does with running requests."""
    deadline: Deadline
    """Every call of the push ends by then."""
    is_partial: bool = False
    """Whether the tensors that are not sent keep their values."""
    update_id: str = field(default_factory=new_update_id)
    """The same at every replica. The replicas report the push's outcome by this id."""
