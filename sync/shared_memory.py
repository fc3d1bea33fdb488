"""How a trainer and workers find out that they can share memory (shared_transfer.py).

That saves most of what a broadcast costs: the kernel copies every byte twice for each worker. A group does it when all
its workers reach the trainer so; otherwise the bytes are broadcast (broadcasts.py).

    trainer: listens at a Unix socket and names it when it calls the workers in
    worker:  connects, shows that it knows the group's name, joins the group, and says there whether it got through
    trainer: when all did, sends the leader the ring's descriptor; tells the group what it will be

The socket is in Linux's abstract namespace and no memory has a name (sealed.py), so that a killed process leaves
nothing behind.
"""

import hmac
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from .closing import Closing
from .gloo import POLL_S, GlooGroup
from .links import Link
from .memory import MemoryPool
from .transports import Receiver

if TYPE_CHECKING:
    from .shared_transfer import SharedSender  # Linux only, as all that is imported further down

LEADER_RANK = 1
REACHED = "reached"
# A worker has connected, and shown what it knows, before the trainer looks; strangers may have, too.
MEET_TIMEOUT_S = 2.0
RANK_BYTES = 4


class Host(Closing):
    """The trainer, until it knows whether all workers are on its machine."""

    def __init__(self, group_name: str, *, is_wanted: bool = True) -> None:
        """Listen. `address` is empty where that is not wanted or not possible: then nothing is said of it."""
        self.address = ""
        self._group_name = group_name
        if is_wanted and hasattr(os, "memfd_create"):
            self.address = f"tritonlive-{secrets.token_hex(16)}"
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(f"\0{self.address}")
            self._listener.listen(128)

    def meet(self, group: GlooGroup) -> "SharedSender | None":
        """The way to all workers; None when one of them is elsewhere. Raises TransferError."""
        if not self.address:
            return None
        reached = [rank for rank, text in group.gather_verdicts().items() if text == REACHED]
        links = self._accept(group, reached) if len(reached) == group.world_size - 1 else {}
        sender = _share_ring(links) if links else None
        group.wait(group.broadcast(torch.tensor([sender is not None], dtype=torch.uint8)))
        return sender

    def close(self) -> None:
        """Listen no more."""
        if self.address:
            self._listener.close()

    def _accept(self, group: GlooGroup, ranks: Sequence[int]) -> dict[int, Link]:
        """A link to each of these, by rank; none when one does not show itself."""
        links: dict[int, Link] = {}
        give_up = time.monotonic() + MEET_TIMEOUT_S
        while len(links) < len(ranks) and time.monotonic() < give_up:
            self._listener.settimeout(POLL_S)
            with suppress(OSError):
                connection, _ = self._listener.accept()
                rank = self._greeted_by(connection)
                if rank in ranks and rank not in links:
                    links[rank] = Link(connection, group, f"worker {rank}")
                else:
                    connection.close()
        if len(links) == len(ranks):
            return links
        for link in links.values():
            link.close()
        return {}

    def _greeted_by(self, connection: socket.socket) -> int:
        """A worker's rank; -1 for a stranger."""
        secret = self._group_name.encode()
        connection.settimeout(POLL_S)
        with suppress(OSError):
            greeting = connection.recv(len(secret) + RANK_BYTES, socket.MSG_WAITALL)
            if hmac.compare_digest(greeting[:-RANK_BYTES], secret):
                return int.from_bytes(greeting[-RANK_BYTES:], "little")
        return -1


class Guest(Closing):
    """A worker, until it knows whether the trainer shares memory."""

    def __init__(self, address: str, group_name: str, rank: int) -> None:
        """Connect to `address`, if the trainer gave one."""
        self._is_asked = bool(address)
        self._rank = rank
        self._connection: socket.socket | None = None
        if not address or not hasattr(os, "memfd_create"):
            return
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(MEET_TIMEOUT_S)
        try:
            connection.connect(f"\0{address}")
            connection.sendall(group_name.encode() + rank.to_bytes(RANK_BYTES, "little"))
        except OSError:  # the trainer is on another machine, or in another container
            connection.close()
        else:
            self._connection = connection

    def meet(self, group: GlooGroup, kept: MemoryPool) -> Receiver | None:
        """The way from the trainer; None when there is none to all workers. Raises TransferError."""
        if not self._is_asked:
            return None
        group.send_verdict(REACHED if self._connection else "")
        decision = torch.zeros(1, dtype=torch.uint8)
        group.wait(group.broadcast(decision))
        if self._connection is None or not decision.item():
            return None
        from .ring import map_ring
        from .shared_transfer import Follower, Leader

        connection, self._connection = self._connection, None
        link = Link(connection, group, "the trainer")
        if self._rank == LEADER_RANK:
            return Leader(map_ring(link.receive_descriptor()), link, kept)
        return Follower(link, kept)

    def close(self) -> None:
        """Leave, unless that is the link now."""
        if self._connection is not None:
            self._connection.close()


def _share_ring(links: Mapping[int, Link]) -> "SharedSender | None":
    """Send the leader the ring's descriptor. None when there is no memory for it: broadcasts need less."""
    from .ring import create_ring
    from .shared_transfer import SharedSender

    leader, *followers = [links[rank] for rank in sorted(links)]
    try:
        descriptor, ring = create_ring()
    except OSError:
        for link in links.values():
            link.close()
        return None
    try:
        leader.send_descriptor(descriptor)
    finally:
        os.close(descriptor)
    return SharedSender(ring, leader, followers)
