"""What the trainer and its workers say to each other over a link."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class MessageCode(StrEnum):
    """What a message is about: first the codes that the trainer sends, then those that workers send."""

    TRANSPORT = "transport"  # how bytes will come: `name`; the leader also gets the ring's descriptor
    STORE = "store"  # `key` and `value` of the group's rendezvous (relay_store.py); workers send it too
    FRAME = "frame"  # one of `num_bytes` is there (shared memory) or comes (gloo)
    DIGESTS = "digests"  # all frames are sent; `digests` of all tensors
    SEGMENT = "segment"  # the leader's, with its descriptor; the trainer passes it on
    CANCEL = "cancel"  # the update ends here; `reason`
    JOINED = "joined"
    PROGRESS = "progress"  # `bytes` of memory allocated, or sent, so far; the trainer sends it too
    READY = "ready"  # an announced update is expected, and there is memory for it
    TAKEN = "taken"  # one more frame
    STAGED = "staged"  # an update has arrived whole
    REJECTED = "rejected"  # the update, or the group; fields of a Rejection
    CANCELLED = "cancelled"  # nothing of the update is left


@dataclass(frozen=True)
class Message:
    """A message that arrived. Its receiver closes the descriptor; -1 means there is none."""

    code: MessageCode
    fields: dict[str, Any] = field(default_factory=dict)
    descriptor: int = -1
