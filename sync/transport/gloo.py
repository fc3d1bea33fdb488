"""The gloo group that broadcasts a push's bytes when not all workers are on the trainer's machine.

The trainer is rank 0, every worker of every replica a rank. The group carries frames (frames.py) and nothing else: what
the members tell each other goes over authenticated links (links.py), the addresses at which they meet as well
(relay_store.py).

gloo neither encrypts nor authenticates its connections. So the network between the trainer and the workers must be one
that only trusted machines can read and write: a private network, a VPN, an encrypted overlay. Who can write to it can
disturb a push. Bytes that were changed do not pass for the trainer's: the digests of all tensors come over the links,
which are authenticated, and an update that differs from them is not staged (digest.py says what a digest is worth).
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

# Broadcasts started before the first is waited for: some on the way while one is filled or checked.
FRAMES_UNDER_WAY = 4
# So many of them at the same time.
NUM_THREADS = 2
# Connections that a member has at most, if one for each other member is fewer: with more members, fewer devices.
MAX_CONNECTIONS = 256

Work = distributed.Work

# Held while a group is destroyed, and for good when the interpreter ends: a destructor that has let go of the
# interpreter's lock and finds it gone would abort the process.
destroying = threading.Lock()
atexit.register(destroying.acquire)


@dataclass(frozen=True)
class Membership:
    """Which group to join, and as which rank."""

    master_address: str
    master_port: int
    """Where the trainer listens for links (handshake.py)."""
    rank: int
    world_size: int
    """The trainer included."""
    secret: str = field(repr=False)
    """Proves that this process was called in; hexadecimal. It must not be logged."""
    timeout_s: float
    """For joining, and for the trainer's silence in an update."""
    num_devices: int = 1
    """The same for all. Broadcasts take them in turn, each with a thread and connections of its own, so that several
    replicas get their bytes side by side."""
    local_address: str = ""
    """The trainer's Unix socket, for workers on its machine; empty: there is none."""


def devices_for(world_size: int) -> int:
    """How many devices the members of such a group should have."""
    return max(1, min(FRAMES_UNDER_WAY, MAX_CONNECTIONS // max(1, world_size - 1)))


class GlooGroup(Closing):
    """A process group of its own (never torch's default one), bound to one address, in which nothing waits for ever.

    Destroying a gloo group joins its threads with the interpreter locked. So `close` hands the group to a daemon thread
    that first waits until no operation is under way.
    """

    def __init__(
        self, store: distributed.Store, membership: Membership, address: str, check: Callable[[], None]
    ) -> None:
        """Meet the others; blocks without the interpreter's lock until all are there. Raises TransferError.

        address: of this machine, where this end listens. check: raises TransferError when a member is gone.
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
        """Start sending (rank 0) or receiving uint8 data[num_bytes]; wait for it with `wait`.

        All members start it when its bytes are there, so it has only its own bytes to wait for, and not a source.
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
                    time.sleep(POLL_S)  # whose connection broke is known a moment later, and says more
                    self._check()
                    raise TransferError(f"gloo: {_brief(error)}") from None
            if work.is_completed():
                with self._lock, suppress(ValueError):  # handed over with the group
                    self._pending.remove(work)
                return
            if self._closed.is_set():
                raise TransferError("gloo: the group was closed")
            self._check()

    def close(self) -> None:
        """Leave the group; returns at once, what is under way ends in the background."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            group, self._group = self._group, None
            pending, self._pending = self._pending, []
        # An operation's time begins when a thread takes it up.
        linger = self._timeout.total_seconds() * FRAMES_UNDER_WAY / NUM_THREADS + 5
        owned = [self._store, pending, group]
        del group, pending
        threading.Thread(target=_retire, args=(owned, linger), name="gloo-retire", daemon=True).start()


def _retire(owned: list[Any], linger: float) -> None:
    """Hold a group's store, operations, and itself until none of these is under way; then destroy all of it."""
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
