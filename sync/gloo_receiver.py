"""The worker's end of a gloo push: one thread that joins the group, then receives update after update.

    JOINING ──► READY ──announce──► RECEIVING ──all arrived, finite──► STAGED ──take──► READY
       └───────────┴───────────────────┴──── any failure, close ────► FAILED (a new receiver is needed)

An update the worker does not take, that holds NaN or Inf, or whose digests are not the trainer's, is no failure: the
trainer is told, and READY follows.

A worker's RPCs run between the engine's steps, so none of them may wait for the network: that is done here.
"""

import os
import queue
import threading
from dataclasses import dataclass
from enum import StrEnum

import torch

from .addresses import own_address_towards
from .broadcasts import BroadcastReceiver
from .buckets import Bucket, lay_out, view_tensors
from .digest import DIGEST_BYTES, unpack_digests
from .errors import SyncError, TransferError
from .gloo import POLL_S, GlooGroup, Membership, join_store
from .memory import MemoryPool
from .shared_memory import Guest
from .sources import ParamMeta
from .transports import Receive, Receiver
from .update import Update


class State(StrEnum):
    JOINING = "joining"
    READY = "ready"
    RECEIVING = "receiving"
    STAGED = "staged"
    FAILED = "failed"


@dataclass(frozen=True)
class Announcement:
    """What the trainer is about to send; `objection` is why it is not wanted, empty when it is."""

    metas: list[ParamMeta]
    bucket_bytes: int
    objection: str = ""


class GlooReceiver:
    """Receives updates in the background. Its methods return at once, unless they say how long they may take."""

    def __init__(self, membership: Membership, kept: MemoryPool) -> None:
        self._membership = membership
        self._kept = kept
        self._state = State.JOINING
        self._changed = threading.Condition()
        self._announcements: queue.SimpleQueue[Announcement] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._group: GlooGroup | None = None
        self._update: Update | None = None
        self.reason = ""
        self._thread = threading.Thread(target=self._run, name="gloo-receiver", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        with self._changed:
            return self._state

    def announce(self, announcement: Announcement) -> None:
        """Expect an update next."""
        with self._changed:
            if self._state is not State.FAILED:
                self._state, self.reason = State.RECEIVING, ""
        self._announcements.put(announcement)

    def take(self, timeout: float) -> Update:
        """The update that arrived. Raises TransferError when there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._state is not State.RECEIVING, timeout)
            if self._state is not State.STAGED or self._update is None:
                why = self.reason or f"no update has arrived (state: {self._state})"
                raise TransferError(f"gloo: {why}")
            self._state = State.READY
            update, self._update = self._update, None
            return update

    def drop(self) -> None:
        """Forget what is staged."""
        with self._changed:
            if self._update is not None:
                self._kept.release(self._update.memory)
                self._update = None
            if self._state is State.STAGED:
                self._state = State.READY

    def close(self, timeout: float = 2.0) -> None:
        """Leave the group. Waits at most `timeout` seconds; a join under way ends at its own deadline by itself."""
        self._closed.set()
        if self._group is not None:
            self._group.close()
        self._thread.join(timeout)
        self.drop()

    # ---- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        use_any_core()
        incoming: Receiver | None = None
        try:
            group, incoming = self._join()
            with self._changed:
                if self._state is State.JOINING:  # an announcement may have come meanwhile
                    self._state = State.READY
            while True:
                self.reason = self._stage(group, incoming, self._next(group))
                self._move(State.READY if self.reason else State.STAGED)
        except (SyncError, RuntimeError, OSError, MemoryError) as error:
            self.reason = str(error)
            self._move(State.FAILED)
        finally:
            if self._group is not None:
                self._group.close()
            if incoming is not None:
                incoming.close()

    def _join(self) -> tuple[GlooGroup, Receiver]:
        """The group, and the way its bytes come."""
        own = self._membership
        store = join_store(own.master_address, own.master_port, own.timeout_s)
        with Guest(own.memory_address, own.group_name, own.rank) as guest:
            self._group = GlooGroup(store, own, own_address_towards(own.master_address, own.master_port))
            if self._closed.is_set():
                raise TransferError("gloo: closed while joining")
            return self._group, guest.meet(self._group, self._kept) or BroadcastReceiver(self._group, self._kept)

    def _next(self, group: GlooGroup) -> Announcement:
        """The next announcement; as long as there is none, watch that the trainer lives."""
        while True:
            try:
                return self._announcements.get(timeout=POLL_S)
            except queue.Empty:
                group.check_peer()

    def _stage(self, group: GlooGroup, incoming: Receiver, announcement: Announcement) -> str:
        """What was announced; tells the trainer, and returns, what is wrong with it."""
        buckets = lay_out(announcement.metas, announcement.bucket_bytes)
        objection = announcement.objection
        if not objection:
            try:
                receive = incoming.prepare(buckets)
            except TransferError as error:
                objection = str(error)
        group.send_verdict(objection)
        return objection or self._receive(group, buckets, receive)

    def _receive(self, group: GlooGroup, buckets: list[Bucket], receive: Receive) -> str:
        """The tensors and their digests; tells the trainer, and returns, what is wrong with them."""
        # When this fails the memory is not released: gloo may still write into it, and nobody else must have it.
        memory, findings = receive()
        metas = [slot.meta for bucket in buckets for slot in bucket.slots]
        sent = torch.empty(max(1, len(metas)) * DIGEST_BYTES, dtype=torch.uint8)
        group.wait(group.broadcast(sent))
        objection = findings.objection([meta.name for meta in metas], unpack_digests(sent)[: len(metas)])
        if objection:
            self._kept.release(memory)
            group.send_verdict(objection)
            return objection
        digests = dict(zip(metas, findings.digests, strict=True))
        self._update = Update(view_tensors(buckets, memory.data), digests, memory)
        group.send_verdict("")
        return ""

    def _move(self, state: State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()


def use_any_core() -> None:
    """Let this thread, and those it starts, run on all of the machine's cores.

    On a CPU vLLM binds a worker to the cores it computes on, and with them every thread started later: a receiver would
    wait for the very cores that generation keeps busy.
    """
    if hasattr(os, "sched_setaffinity"):  # Linux; the kernel leaves out what the container may not use
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
