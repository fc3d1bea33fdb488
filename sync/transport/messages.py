"""The messages between the trainer and its workers."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class MessageCode(StrEnum):
    """Code of a message: first the trainer's codes, then the workers'."""

    TRANSPORT = (
        "transport"  # how the bytes will travel: `name`, a TransportName; the leader also gets the ring's descriptor
    )
    STORE = "store"  # `key` and `value` of the group's rendezvous (relay_store.py); workers send it too
    FRAME = "frame"  # a frame of `num_bytes` has been written (shared memory) or will be broadcast (gloo)
    DIGESTS = "digests"  # all frames have been sent; `digests` of all tensors
    SEGMENT = "segment"  # the leader's segment, by its descriptor; the trainer passes it on to the followers
    CANCEL = "cancel"  # the trainer ends the update; `reason`
    JOINED = "joined"  # the worker is ready for announcements
    PROGRESS = "progress"  # `bytes` allocated or sent so far; the trainer sends it too
    READY = "ready"  # the worker accepts the announced update and has memory for it
    TAKEN = "taken"  # the worker has read a frame
    STAGED = "staged"  # an update has arrived complete and undamaged
    REJECTED = "rejected"  # the worker rejects the update, or the group; fields of a Rejection
    CANCELLED = "cancelled"  # the worker has dropped the cancelled update


class TransportName(StrEnum):
    """How a push's bytes travel: in messages to the workers, and in a push's report."""

    SHARED_MEMORY = "shared memory"
    GLOO = "gloo"


@dataclass(frozen=True)
class Message:
    """A message that arrived. Its receiver closes the descriptor; -1 means there is none."""

    code: MessageCode
    fields: dict[str, Any] = field(default_factory=dict)
    descriptor: int = -1
