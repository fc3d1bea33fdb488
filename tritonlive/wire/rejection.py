"""Why a worker does not take an update, as it travels to the trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class RejectCode(StrEnum):
    NOT_SERVED = "not_served"  # the announcement does not fit the served model
    NO_MEMORY = "no_memory"  # to stage it in
    NOT_FINITE = "not_finite"  # NaN or Inf in what arrived
    DAMAGED = "damaged"  # what arrived is not what was sent
    DROPPED = "dropped"  # the replica aborted the update meanwhile
    NO_DESCRIPTORS = "no_descriptors"  # too few to join the group
    CANCELLED = "cancelled"  # by the trainer


@dataclass(frozen=True)
class Rejection:
    """`code` is for programs, `detail` for people; `names` are the tensors concerned."""

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
