"""The group of a gloo push: the trainer is rank 0 and hosts the rendezvous, every worker of every replica joins.

What travels in one update, in this order (a control call starts it; see gloo_trainer.py and gloo_receiver.py):

    verdict        every worker → trainer    whether it takes what the control call announced
    bytes          trainer → workers         bucket by bucket (buckets.py), by broadcasts.py or shared_transfer.py
    broadcast      trainer → workers         the digests of all tensors (digest.py)
    verdict        every worker → trainer    whether what arrived is what was sent, finite, and new

A verdict is VERDICT_BYTES bytes: UTF-8 text padded with zeros; empty text is consent, UNCHANGED is consent, too.
"""

import atexit
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from .addresses import listen
from .errors import TransferError

VERDICT_BYTES = 4096
# The worker's model holds these very tensors already.
UNCHANGED = "="
# How often a wait looks whether the other side is still there, and whether it is wanted at all.
POLL_S = 0.25
# A peer that is gone without a word (SIGKILL in the middle of a message) leaves gloo's own threads waiting this long.
STALL_TIMEOUT_S = 30.0
# Broadcasts started before the first is waited for: some on the way while one is filled or checked.
BUCKETS_UNDER_WAY = 4
# So many of them at the same time.
NUM_THREADS = 2

Work = distributed.Work

# Held while a group is destroyed, and for good when the interpreter ends: a destructor that has let go of the
# interpreter's lock and finds it gone would abort the process.
destroying = threading.Lock()
atexit.register(destroying.acquire)


@dataclass(frozen=True)
class Membership:
    """Which group to join, and as whom."""

    master_address: str
    master_port: int
    rank: int
    world_size: int
    group_name: str
    timeout_s: float
    num_devices: int = 1
    """The same for all. Operations take them in turn, each with a thread and connections of its own, so that several
    replicas get their bytes side by side."""
    memory_address: str = ""
    """Where the trainer offers to share memory (shared_memory.py); empty: it does not."""


class GlooGroup:
    """A process group of its own (never torch's default one), bound to one address, in which nothing waits for ever.

    Destroying a gloo group joins its threads with the interpreter locked. So `close` hands the group to a daemon thread
    that first waits until no operation is under way.
    """

    def __init__(self, store: distributed.Store, own: Membership, address: str) -> None:
        """Meet the others; blocks without the interpreter lock until all are there. Raises TransferError.

        address: of this machine, where this end listens.
        """
        self._store = store
        self.world_size = own.world_size
        self.stall_timeout_s = min(own.timeout_s, STALL_TIMEOUT_S)
        self._stall_timeout = timedelta(seconds=self.stall_timeout_s)
        self._pending: list[Work] = []
        self._closed = threading.Event()
        self._lock = threading.Lock()  # an operation must not begin while the group is being handed over
        gloo: Any = distributed.ProcessGroupGloo  # torch's type stubs leave out what only this backend has
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=address) for _ in range(own.num_devices)]
        options._timeout = timedelta(seconds=own.timeout_s)
        options._threads = NUM_THREADS
        try:
            prefixed = distributed.PrefixStore(own.group_name, store)
            self._group: Any = gloo(prefixed, own.rank, own.world_size, options)
        except RuntimeError as error:
            why = f"{own.world_size} ranks did not meet within {own.timeout_s:g} s: {_brief(error)}"
            raise TransferError(f"gloo: {why}") from None

    def broadcast(self, data: torch.Tensor) -> Work:
        """Start sending (rank 0) or receiving uint8 data[num_bytes]; wait for it with `wait`."""
        options = distributed.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        options.timeout = self._stall_timeout
        return self._begin(lambda group: group.broadcast([data], options))

    def send_verdict(self, text: str) -> None:
        """Worker: tell the trainer; empty text is consent."""
        options = distributed.GatherOptions()
        options.rootRank = 0
        options.timeout = self._stall_timeout
        data = _encode(text)
        self.wait(self._begin(lambda group: group.gather([], [data], options)))

    def gather_verdicts(self) -> dict[int, str]:
        """Trainer: what the workers say, by rank; those that just consent are left out."""
        options = distributed.GatherOptions()
        options.rootRank = 0
        options.timeout = self._stall_timeout
        answers = [_encode("") for _ in range(self.world_size)]
        self.wait(self._begin(lambda group: group.gather([answers], [_encode("")], options)))
        return {rank: text for rank, answer in enumerate(answers) if (text := _decode(answer))}

    def wait(self, work: Work) -> None:
        """Until the operation is done. Raises TransferError when it fails, stalls, or the group is closed meanwhile."""
        while True:
            try:
                work.wait(timedelta(seconds=POLL_S))
            except RuntimeError as error:
                if work.is_completed():
                    raise TransferError(f"gloo: {_brief(error)}") from None
            if work.is_completed():
                with self._lock, suppress(ValueError):  # handed over with the group
                    self._pending.remove(work)
                return
            self.check_peer()

    def check_peer(self) -> None:
        """Raises TransferError when the group is closed, or the process that hosts the rendezvous is gone."""
        if self._closed.is_set():
            raise TransferError("gloo: the group was closed")
        try:
            self._store.check(["alive"])
        except RuntimeError as error:
            raise TransferError(f"gloo: the trainer is gone: {_brief(error)}") from None

    def close(self) -> None:
        """Leave the group; returns at once, what is under way ends in the background."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            group, self._group = self._group, None
            pending, self._pending = self._pending, []
        # An operation's time begins when a thread takes it up.
        linger = self.stall_timeout_s * BUCKETS_UNDER_WAY / NUM_THREADS + 5
        owned = [group, self._store, pending]
        del group, pending
        threading.Thread(target=_retire, args=(owned, linger), name="gloo-retire", daemon=True).start()

    def _begin(self, start: Callable[[Any], Work]) -> Work:
        with self._lock:
            if self._group is None:
                raise TransferError("gloo: the group was closed")
            try:
                work = start(self._group)
            except RuntimeError as error:
                raise TransferError(f"gloo: {_brief(error)}") from None
            self._pending.append(work)
            return work


def _retire(owned: list[Any], linger: float) -> None:
    """Hold a group, its rendezvous and its operations until none of these is under way; then destroy all of it."""
    give_up = time.monotonic() + linger
    while any(not work.is_completed() for work in owned[2]) and time.monotonic() < give_up:
        time.sleep(POLL_S)
    with destroying:
        owned.clear()


def host_store(address: str, port: int, timeout: float) -> tuple[distributed.TCPStore, int]:
    """Host a rendezvous at one address only (TCPStore by itself listens on all of them); port 0 picks a free one.

    Returns the store and its port. Raises TransferError as `listen`.
    """
    listener = listen(address, port)
    bound = listener.getsockname()[1]
    store = distributed.TCPStore(
        address,
        bound,
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, bound


def join_store(address: str, port: int, timeout: float) -> distributed.TCPStore:
    """Connect to the trainer's rendezvous. Raises TransferError."""
    try:
        return distributed.TCPStore(address, port, timeout=timedelta(seconds=timeout), wait_for_workers=False)
    except RuntimeError as error:
        raise TransferError(f"gloo: no rendezvous at {address}:{port} within {timeout:g} s: {_brief(error)}") from None


def _encode(text: str) -> torch.Tensor:
    data = text.encode()[:VERDICT_BYTES].ljust(VERDICT_BYTES, b"\0")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _decode(data: torch.Tensor) -> str:
    return data.numpy().tobytes().rstrip(b"\0").decode(errors="replace")


def _brief(error: BaseException) -> str:
    """A c10d error without its C++ stack and source positions."""
    line = str(error).partition("\n")[0]
    return line.rpartition("] ")[2][:300] if line.startswith("[/") else line[:300]
