"""A push's bytes through memory that the trainer shares with workers on its own machine.

    trainer  copies a piece into the ring's next slot  ──one byte──►  each worker copies it out
             fills that slot again when all have       ◄──one byte──

It saves most of what a broadcast costs: the kernel copies every byte twice for each worker. A group uses it when all
its workers reach it; otherwise the bytes are broadcast (broadcasts.py). How the two sides find that out:

    trainer: listens at a Unix socket and names it when it calls the workers in
    worker:  connects, shows that it knows the group's name, joins the group, and says there whether it got through
    trainer: when all did, sends each the ring's descriptor; tells the group what it will be

The socket is in Linux's abstract namespace and the ring has no name at all (ring.py), so that a killed process leaves
nothing behind.
"""

import hmac
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np
import torch

from .buckets import Pieces, fill, gather, host_buffer
from .closing import Closing
from .errors import TransferError
from .gloo import POLL_S, GlooGroup

T = TypeVar("T")
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
        links = self._accept(group, reached) if len(reached) == group.world_size - 1 else []
        sender = _share_ring(links) if links else None
        group.wait(group.broadcast(torch.tensor([sender is not None], dtype=torch.uint8)))
        return sender

    def close(self) -> None:
        """Listen no more."""
        if self.address:
            self._listener.close()

    def _accept(self, group: GlooGroup, ranks: Sequence[int]) -> "list[Link]":
        """A link to each of these; none when one does not show itself."""
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
            return list(links.values())
        for link in links.values():
            link.close()
        return []

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

    def meet(self, group: GlooGroup) -> "SharedReceiver | None":
        """The way from the trainer; None when there is none to all workers. Raises TransferError."""
        if not self._is_asked:
            return None
        group.send_verdict(REACHED if self._connection else "")
        decision = torch.zeros(1, dtype=torch.uint8)
        group.wait(group.broadcast(decision))
        if self._connection is None or not decision.item():
            return None
        from .ring import map_ring  # Linux only

        connection, self._connection = self._connection, None
        link = Link(connection, group, "the trainer")
        return SharedReceiver(map_ring(link.receive_descriptor()), link)

    def close(self) -> None:
        """Leave, unless that is the link now."""
        if self._connection is not None:
            self._connection.close()


class Link(Closing):
    """One side's end of a connection: each byte says that a piece is there, or that it was copied out."""

    def __init__(self, connection: socket.socket, group: GlooGroup, peer: str) -> None:
        connection.settimeout(POLL_S)
        self._connection = connection
        self._group = group
        self._peer = peer
        self._heard = 0

    def tell(self) -> None:
        """One more. Raises TransferError as `wait_for`."""
        self._persist(lambda: self._connection.send(b"\0"))

    def wait_for(self, count: int) -> None:
        """Until the peer has told so many since the beginning.

        Raises TransferError when it is gone, stalls, or the group is closed meanwhile.
        """
        while self._heard < count:
            told = self._persist(lambda: self._connection.recv(64))
            if not told:
                raise TransferError(f"shared memory: {self._peer} is gone")
            self._heard += len(told)

    def send_descriptor(self, descriptor: int) -> None:
        """Raises TransferError as `wait_for`."""
        self._persist(lambda: socket.send_fds(self._connection, [b"\0"], [descriptor]))

    def receive_descriptor(self) -> int:
        """The caller closes it. Raises TransferError as `wait_for`."""
        _, descriptors, _, _ = self._persist(lambda: socket.recv_fds(self._connection, 1, 1))
        if not descriptors:
            raise TransferError(f"shared memory: {self._peer} is gone")
        return descriptors[0]

    def close(self) -> None:
        """Whoever waits on it, on either side, hears of it at once."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _persist(self, call: Callable[[], T]) -> T:
        give_up = time.monotonic() + self._group.stall_timeout_s
        while True:
            try:
                return call()
            except TimeoutError:
                self._group.check_peer()
                if time.monotonic() > give_up:
                    why = f"{self._peer} did nothing for {self._group.stall_timeout_s:g} s"
                    raise TransferError(f"shared memory: {why}") from None
            except OSError as error:
                raise TransferError(f"shared memory: {self._peer} is gone: {error}") from None


class SharedSender(Closing):
    """The trainer's way to send (as BroadcastSender)."""

    transport = "shared memory"

    def __init__(self, ring: np.ndarray, links: Sequence[Link]) -> None:
        """ring: uint8[slots, bytes of each]."""
        self.num_sent = 0  # bytes that all workers can have
        self._slots = torch.from_numpy(ring)
        self._links = links
        self._pieces = 0

    def send(self, pieces: Pieces, num_bytes: int) -> torch.Tensor:
        """One bucket; returns it, uint8[num_bytes], which is there until the next. Raises TransferError."""
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
        """Until all is copied out. Raises TransferError."""
        for link in self._links:
            link.wait_for(self._pieces)

    def close(self) -> None:
        for link in self._links:
            link.close()

    def _free_slot(self) -> torch.Tensor:
        """Waits until all workers have copied out what it held."""
        for link in self._links:
            link.wait_for(self._pieces - len(self._slots) + 1)
        return self._slots[self._pieces % len(self._slots)]

    def _tell(self) -> None:
        self._pieces += 1
        for link in self._links:
            link.tell()


def _share_ring(links: Sequence[Link]) -> SharedSender | None:
    """Send each the ring's descriptor. None when there is no memory for it: broadcasts need less."""
    from .ring import create_ring  # Linux only

    try:
        descriptor, ring = create_ring()
    except OSError:
        for link in links:
            link.close()
        return None
    try:
        for link in links:
            link.send_descriptor(descriptor)
    finally:
        os.close(descriptor)
    return SharedSender(ring, links)


class SharedReceiver(Closing):
    """A worker's way to receive (as BroadcastReceiver)."""

    def __init__(self, ring: np.ndarray, link: Link) -> None:
        """ring: uint8[slots, bytes of each], read-only."""
        self._slots = ring
        self._link = link
        self._pieces = 0

    def receive(self, places: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Fill them in order, uint8[num_bytes] each; yields each when it is full. Raises TransferError."""
        for place in places:
            for part in place.split(self._slots.shape[1]):
                self._link.wait_for(self._pieces + 1)
                # By numpy, in this thread: torch would take the threads that generate.
                np.copyto(part.numpy(), self._slots[self._pieces % len(self._slots), : len(part)])
                self._pieces += 1
                self._link.tell()
            yield place

    def close(self) -> None:
        self._link.close()
