"""The gloo group that broadcasts a push's bytes when not all workers are on the trainer's machine.

The trainer is rank 0, and every worker of every replica has a rank. The group carries frames (frames.py) and nothing
else. Messages, and the members' addresses (relay_store.py), go over authenticated links (link.py).

gloo neither encrypts nor authenticates its connections. So only trusted machines may read and write the network between
the trainer and the workers: a private network, a VPN, an encrypted overlay. An attacker who can write to it can disturb
a push, but changed bytes are not staged: the digests of all tensors come over the authenticated links, and a worker
rejects an update that differs from them (weights/digest.py says what a digest protects against).
"""

import atexit
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from sync.closing import Closing
from sync.errors import TransferError
from sync.transport.link import POLL_S, STALL_TIMEOUT_S

# Broadcasts in flight: some travel while the next frame is filled or checked.
FRAMES_UNDER_WAY = 4
# gloo's threads for them.
NUM_THREADS = 2
# A member's connections are at most this many, or one for each other member: more members use fewer devices.
MAX_CONNECTIONS = 256

Work = distributed.Work

# Held while a group is destroyed, and forever once the interpreter ends: a destructor that released the interpreter's
# lock and cannot take it again would abort the process.
destroying = threading.Lock()
atexit.register(destroying.acquire)


@dataclass(frozen=True)
class Membership:
    """The group to join, and the rank to join as."""

    master_address: str
    master_port: int
    """Where the trainer listens for links (proofs.py)."""
    rank: int
    world_size: int
    """Number of members, the trainer included."""
    secret: str = field(repr=False)
    """Proves that this process was called into the group; hexadecimal. Never log it."""
    timeout_s: float
    """Limit for joining, and for the trainer's silence during an update."""
    num_devices: int = 1
    """The same for all members. Broadcasts use the devices in turn. Each device has its own thread and connections, so
    several replicas get their bytes in parallel."""
    local_address: str = ""
    """The trainer's Unix socket, for workers on its machine; empty when there is none."""


def devices_for(world_size: int) -> int:
    """The number of devices that each member of a group of this size should have."""
    return max(1, min(FRAMES_UNDER_WAY, MAX_CONNECTIONS // max(1, world_size - 1)))


class GlooGroup(Closing):
    """A separate process group (never torch's default one), bound to one address. Every wait in it has a limit.

    Destroying a gloo group joins its threads while it holds the interpreter's lock. So `close` hands the group to a
    daemon thread, which first waits until no operation is under way.
    """

    def __init__(
        self, store: distributed.Store, membership: Membership, address: str, check: Callable[[], None]
    ) -> None:
        """Meet the other members. Blocks, without the interpreter's lock, until all have come. Raises TransferError.

        address: this machine's address, where this member listens. check: raises TransferError when a member is gone.
        """
        self._store = store
        self._check = check
        self._timeout = timedelta(seconds=min(membership.timeout_s, STALL_TIMEOUT_S))
        self._pending: list[Work] = []
        self._closed = threading.Event()
        self._lock = threading.Lock()  # an operation must not begin while the group is being handed over
        gloo: Any = distributed.ProcessGroupGloo  # torch's type stubs leave out what only this backend has
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=address) for _ in range(membership.num_devices)]
        options._timeout = timedelta(seconds=membership.timeout_s)
        options._threads = NUM_THREADS
        try:
            self._group: Any = gloo(store, membership.rank, membership.world_size, options)
        except RuntimeError as error:
            why = f"{membership.world_size} ranks did not meet within {membership.timeout_s:g} s: {_brief(error)}"
            raise TransferError(f"gloo: {why}") from None

    def broadcast(self, data: torch.Tensor) -> Work:
        """Start sending (rank 0) or receiving uint8 data[num_bytes]; `wait` ends it.

        Rank 0 starts it when the bytes are ready, so its time limit covers the transfer and not the source.
        """
        options = distributed.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        options.timeout = self._timeout
        with self._lock:
            if self._group is None:
                raise TransferError("gloo: the group was closed")
            try:
                work = self._group.broadcast([data], options)
            except RuntimeError as error:
                raise TransferError(f"gloo: {_brief(error)}") from None
            self._pending.append(work)
            return work

    def wait(self, work: Work) -> None:
        """Until the operation is done.

        Raises TransferError when it fails, stalls, a member is gone, or the group is closed meanwhile.
        """
        while True:
            try:
                work.wait(timedelta(seconds=POLL_S))
            except RuntimeError as error:
                if work.is_completed():
                    time.sleep(POLL_S)  # a moment later `check` knows which member's connection broke
                    self._check()
                    raise TransferError(f"gloo: {_brief(error)}") from None
            if work.is_completed():
                with self._lock, suppress(ValueError):  # `close` has taken it
                    self._pending.remove(work)
                return
            if self._closed.is_set():
                raise TransferError("gloo: the group was closed")
            self._check()

    def close(self) -> None:
        """Leave the group. Returns at once; running operations end in the background."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            group, self._group = self._group, None
            pending, self._pending = self._pending, []
        # An operation's time limit starts when a gloo thread takes it.
        linger = self._timeout.total_seconds() * FRAMES_UNDER_WAY / NUM_THREADS + 5
        owned = [self._store, pending, group]
        del group, pending
        threading.Thread(target=_retire, args=(owned, linger), name="gloo-retire", daemon=True).start()


def _retire(owned: list[Any], linger: float) -> None:
    """Keep a group, its store and its operations until no operation is under way; then destroy them."""
    give_up = time.monotonic() + linger
    while any(not work.is_completed() for work in owned[1]) and time.monotonic() < give_up:
        time.sleep(POLL_S)
    with destroying:
        while owned:
            owned.pop()


def _brief(error: BaseException) -> str:
    """A c10d error without its C++ stack and source positions."""
    line = str(error).partition("\n")[0]
    return line.rpartition("] ")[2][:300] if line.startswith("[/") else line[:300]
