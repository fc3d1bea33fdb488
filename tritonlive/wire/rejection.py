"""Why a worker rejects an update; travels from the worker to the trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class RejectCode(StrEnum):
    NOT_SERVED = "not_served"
    """The announced tensors do not fit the served model."""
    NO_MEMORY = "no_memory"
    """The worker has too little memory to stage the update."""
    NOT_FINITE = "not_finite"
    """NaN or Inf in a received tensor."""
    DAMAGED = "damaged"
    """The received bytes are not the sent ones."""
    DROPPED = "dropped"
    """The replica aborted the update meanwhile."""
    NO_DESCRIPTORS = "no_descriptors"
    """The worker has too few file descriptors to join the group."""
    CANCELLED = "cancelled"
    """The trainer cancelled the update."""


@dataclass(frozen=True)
class Rejection:
    """`code` is for programs, `detail` for people; `names` are the tensors at fault."""

    code: RejectCode
    detail: str
    names: Sequence[str] = ()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        return cls(RejectCode(fields["reason"]), str(fields["detail"]), tuple(fields["names"]))

    def to_fields(self) -> dict[str, Any]:
        return {"reason": self.code, "detail": self.detail, "names": list(self.names)}

    def __str__(self) -> str:
        return self.detail
