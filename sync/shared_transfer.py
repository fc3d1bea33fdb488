"""A push's bytes through memory that the trainer and the workers on its machine share.

    trainer   copies a piece into the ring's next slot    ──one byte──►   leader   copies it out into its segment
              fills that slot again when it has           ◄──one byte──            looks at what arrived
              hands on the segment of a whole update      ◄─descriptor──
                                    followers  ◄─descriptor──┘

The leader is the worker with the lowest rank: it stages the update and examines it, once for the whole machine. The
others, the followers, load from its memory, and judge for themselves by what it found (segments.py). They are told of
each piece, too: so they know that the trainer is at it, and the trainer that they are there. Linux only.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .buckets import Bucket, Pieces, cut, fill, gather, host_buffer, num_tensors, total_bytes
from .findings import Findings
from .links import Link
from .memory import Memory, MemoryPool
from .segments import Segment, SegmentView
from .transports import Receive, Receiver, Sender


class SharedSender(Sender):
    """The trainer's end."""

    transport = "shared memory"

    def __init__(self, ring: np.ndarray, leader: Link, followers: Sequence[Link]) -> None:
        """ring: uint8[slots, bytes of each]."""
        self._slots = torch.from_numpy(ring)
        self._leader = leader
        self._followers = followers
        self._pieces = 0

    def send(self, pieces: Pieces, num_bytes: int) -> torch.Tensor:
        """As the base class."""
        if num_bytes <= self._slots.shape[1]:
            data = self._free_slot()[:num_bytes]
            fill(data, pieces)
            self._tell()
        else:
            data = gather(pieces, num_bytes, host_buffer)
            for part in data.split(self._slots.shape[1]):
                fill(self._free_slot(), [(0, part)])
                self._tell()
        self.num_sent += num_bytes
        return data

    def flush(self) -> None:
        """As the base class; hands the leader's segment on."""
        descriptor = self._leader.receive_descriptor()
        try:
            for follower in self._followers:
                follower.send_descriptor(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        for link in self._links:
            link.close()

    @property
    def _links(self) -> list[Link]:
        return [self._leader, *self._followers]

    def _free_slot(self) -> torch.Tensor:
        """Waits until the leader has copied out what it held."""
        self._leader.wait_for(self._pieces - len(self._slots) + 1)
        return self._slots[self._pieces % len(self._slots)]

    def _tell(self) -> None:
        self._pieces += 1
        for link in self._links:
            link.tell()


class Leader(Receiver):
    """The end of the worker that stages for all."""

    def __init__(self, ring: np.ndarray, link: Link, kept: MemoryPool) -> None:
        """ring: uint8[slots, bytes of each], read-only."""
        self._slots = ring
        self._link = link
        self._kept = kept
        self._pieces = 0

    def prepare(self, buckets: Sequence[Bucket]) -> Receive:
        """As the base class."""
        num_bytes, count = total_bytes(buckets), num_tensors(buckets)
        segment = self._kept.take(
            Segment, num_bytes, lambda spare: spare.is_free(count), lambda: Segment(num_bytes, count)
        )
        return lambda: self._receive(buckets, segment)

    def close(self) -> None:
        self._link.close()

    def _receive(self, buckets: Sequence[Bucket], segment: Segment) -> tuple[Memory, Findings]:
        findings = Findings.examine(buckets, self._fill(cut(buckets, segment.data)))
        segment.vouch(findings)
        self._link.send_descriptor(segment.descriptor)
        return segment, findings

    def _fill(self, places: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Each when it is full."""
        for place in places:
            for part in place.split(self._slots.shape[1]):
                self._link.wait_for(self._pieces + 1)
                # By numpy, in this thread: torch would take the threads that generate.
                np.copyto(part.numpy(), self._slots[self._pieces % len(self._slots), : len(part)])
                self._pieces += 1
                self._link.tell()
            yield place


class Follower(Receiver):
    """The end of a worker that loads what the leader staged."""

    def __init__(self, link: Link, kept: MemoryPool) -> None:
        self._link = link
        self._kept = kept

    def prepare(self, buckets: Sequence[Bucket]) -> Receive:
        """As the base class: the memory is the leader's."""
        return lambda: self._receive(buckets)

    def close(self) -> None:
        self._link.close()

    def _receive(self, buckets: Sequence[Bucket]) -> tuple[Memory, Findings]:
        num_bytes, count = total_bytes(buckets), num_tensors(buckets)
        descriptor = self._link.receive_descriptor()
        try:
            view = self._kept.take(
                SegmentView,
                num_bytes,
                lambda spare: spare.is_of(descriptor, count),
                lambda: SegmentView(descriptor, num_bytes, count),
            )
        finally:
            os.close(descriptor)
        view.hold()
        return view, view.findings()
