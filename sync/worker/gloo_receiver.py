"""The worker's side of a push: one thread that joins the trainer's group, then receives updates.

    JOINING ──► READY ──announce──► RECEIVING ──all arrived, as sent, finite──► STAGED ──take──► READY
       └───────────┴───────────────────┴──── any failure, close ────► FAILED (a new receiver is needed)

READY follows an update that this worker rejects (tritonlive/wire/rejection.py), that the trainer cancels, or that is
dropped here while it arrives: none of these is a failure.

A worker's RPCs run between the engine's steps and must not wait for the network, so this thread does.
"""

import os
import queue
import threading
from dataclasses import dataclass
from enum import StrEnum

from sync.addresses import own_address_towards
from sync.errors import RejectedError, SyncError, TransferError
from sync.transport.descriptors import ensure_descriptors, gloo_descriptors
from sync.transport.gloo import GlooGroup, Membership
from sync.transport.layout import Layout
from sync.transport.link import POLL_S, Link
from sync.transport.messages import Message, MessageCode, TransportName
from sync.transport.worker.broadcast_receiver import BroadcastReceiver
from sync.transport.worker.frame_receiver import FrameReceiver
from sync.transport.worker.handshake import join
from sync.transport.worker.memory import MemoryPool, StagingMemoryError
from sync.transport.worker.store import worker_store
from sync.weights.weight_source import ParamMeta
from sync.worker.staged_update import StagedUpdate
from tritonlive.wire.rejection import RejectCode, Rejection


class ReceiverState(StrEnum):
    JOINING = "joining"
    READY = "ready"
    RECEIVING = "receiving"
    STAGED = "staged"
    FAILED = "failed"


@dataclass(frozen=True)
class Announcement:
    """The tensors that the trainer will send. `reject_reason` is empty, or says why this worker refuses them."""

    metas: list[ParamMeta]
    reject_reason: str = ""


class GlooReceiver:
    """Receives updates in the background. Methods return at once, except those with a `timeout`."""

    def __init__(self, membership: Membership, pool: MemoryPool) -> None:
        """Begin to join the trainer's group; updates are staged in memory from the pool."""
        self._membership = membership
        self._pool = pool
        self._state = ReceiverState.JOINING
        self._changed = threading.Condition()
        self._announcements: queue.SimpleQueue[tuple[Announcement, int]] = queue.SimpleQueue()
        self._num_drops = 0  # drops announcements that came before the last `drop`
        self._closed = threading.Event()
        self._link: Link | None = None
        self._update: StagedUpdate | None = None
        self._reason = ""
        self._rejection: Rejection | None = None  # set when the reason is a rejection
        self._thread = threading.Thread(target=self._run, name="gloo-receiver", daemon=True)
        self._thread.start()

    @property
    def state(self) -> ReceiverState:
        with self._changed:
            return self._state

    @property
    def reason(self) -> str:
        """Why the last update was not staged, or why the receiver failed; otherwise empty."""
        with self._changed:
            return self._reason

    def announce(self, announcement: Announcement) -> None:
        """Expect an update next. The trainer gets this worker's rejection over the link."""
        with self._changed:
            if self._state is not ReceiverState.FAILED:
                self._state, self._reason, self._rejection = ReceiverState.RECEIVING, "", None
            self._announcements.put((announcement, self._num_drops))

    def take(self, timeout: float) -> StagedUpdate:
        """The staged update. Waits for an update that is arriving.

        Raises RejectedError or TransferError, with the reason, when there is none.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state is not ReceiverState.RECEIVING, timeout)
            if self._update is None:
                if self._rejection is not None:
                    raise RejectedError(self._reason, {self._membership.rank: self._rejection})
                raise TransferError(self._reason or f"gloo: no update has arrived (state: {self._state})")
            update, self._update = self._update, None
            if self._state is ReceiverState.STAGED:
                self._state = ReceiverState.READY
            return update

    def drop(self) -> None:
        """Drop the staged update, and do not stage an update that is arriving."""
        with self._changed:
            self._num_drops += 1
            self._unstage()

    def close(self, timeout: float = 2.0) -> None:
        """Leave the group. Waits at most `timeout` seconds; a running join ends at its own deadline."""
        self._closed.set()
        if self._link is not None:
            self._link.close()
        self._thread.join(timeout)
        self.drop()

    # ---- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        use_any_core()
        incoming: FrameReceiver | None = None
        try:
            link = self._join()
            incoming = self._open_transport(link)
            link.signal(MessageCode.JOINED)
            with self._changed:
                if self._state is ReceiverState.JOINING:  # an announcement may have arrived meanwhile
                    self._state = ReceiverState.READY
            while True:
                announcement, num_drops = self._next(link)
                self._receive(link, incoming, announcement, num_drops)
        except (SyncError, RuntimeError, OSError, MemoryError, ValueError, KeyError) as error:
            self._move(ReceiverState.FAILED, str(error) if isinstance(error, SyncError) else f"gloo: {error!r}")
        finally:
            if incoming is not None:
                incoming.discard()
                incoming.close()
            if self._link is not None:
                self._link.close()

    def _join(self) -> Link:
        own = self._membership
        ensure_descriptors(8, "joining a trainer's group")
        self._link = join(own.master_address, own.master_port, own.local_address, own.secret, own.rank, own.timeout_s)
        if self._closed.is_set():
            raise TransferError("gloo: closed while joining")
        return self._link

    def _open_transport(self, link: Link) -> FrameReceiver:
        """Open the transport that the trainer has chosen."""
        own = self._membership
        message = link.wait(own.timeout_s)
        if message.code is not MessageCode.TRANSPORT:
            raise TransferError(f"gloo: expected the trainer's choice of transport, got {message.code}")
        if message.fields["name"] == TransportName.GLOO:
            try:
                ensure_descriptors(
                    gloo_descriptors(own.world_size, own.num_devices), "this worker's place in the group"
                )
            except TransferError as error:
                link.signal(MessageCode.REJECTED, **Rejection(RejectCode.NO_DESCRIPTORS, str(error)).to_fields())
                raise
            address = own_address_towards(own.master_address, own.master_port)
            return BroadcastReceiver(
                GlooGroup(worker_store(link, own.timeout_s), own, address, link.check), link, self._pool
            )
        from sync.transport.ring import (
            LEADER_RANK,
            map_ring,  # Linux only, as all of shared memory
        )
        from sync.transport.worker.shared_receivers import Follower, Leader

        if own.rank == LEADER_RANK:
            return Leader(map_ring(message.descriptor), link, self._pool)
        return Follower(link, self._pool, own.timeout_s)

    def _next(self, link: Link) -> tuple[Announcement, int]:
        """The next announcement. Reads the trainer's messages until there is one."""
        while True:
            try:
                return self._announcements.get(timeout=POLL_S)
            except queue.Empty:
                message = link.receive(0)
            if message is not None and message.code is MessageCode.CANCEL:
                self._end_cancelled(link, message)

    def _receive(self, link: Link, incoming: FrameReceiver, announcement: Announcement, num_drops: int) -> None:
        """Receive and stage one update, or send the trainer a rejection."""
        layout = Layout(announcement.metas)
        rejection = self._prepare(link, incoming, announcement, layout)
        if rejection is not None:
            self._reject(link, rejection)
            return
        link.signal(MessageCode.READY)
        digests = self._take_frames(link, incoming)
        if digests is None:
            return
        memory, findings = incoming.finish()
        rejection = findings.rejection([meta.name for meta in layout.metas], digests)
        if rejection is None:
            found = dict(zip(layout.metas, findings.digests, strict=True))
            with self._changed:
                if num_drops == self._num_drops:
                    self._update = StagedUpdate(layout.view_tensors(memory.data), found, memory)
                    self._move(ReceiverState.STAGED, "")
                else:
                    rejection = Rejection(RejectCode.DROPPED, "the replica dropped the update meanwhile")
        if rejection is not None:
            self._pool.release(memory)
            self._reject(link, rejection)
        else:
            link.signal(MessageCode.STAGED)

    def _prepare(
        self, link: Link, incoming: FrameReceiver, announcement: Announcement, layout: Layout
    ) -> Rejection | None:
        if announcement.reject_reason:
            return Rejection(RejectCode.NOT_SERVED, announcement.reject_reason)
        try:
            incoming.prepare(layout, lambda num_bytes: link.signal(MessageCode.PROGRESS, bytes=num_bytes))
        except StagingMemoryError as error:
            return Rejection(RejectCode.NO_MEMORY, str(error))
        return None

    def _take_frames(self, link: Link, incoming: FrameReceiver) -> list[int] | None:
        """Read all frames. Returns the trainer's digests of the tensors; None when the trainer cancelled the update."""
        while True:
            message = link.receive(0)
            if message is None:
                if incoming.settle():
                    continue
                message = link.wait(self._membership.timeout_s)
            if message.code is MessageCode.FRAME:
                incoming.take(message)
            elif message.code is MessageCode.DIGESTS:
                return message.fields["digests"]
            elif message.code is MessageCode.CANCEL:
                while incoming.settle():
                    pass
                incoming.discard()
                self._end_cancelled(link, message)
                return None

    def _reject(self, link: Link, rejection: Rejection) -> None:
        self._move(ReceiverState.READY, f"gloo: {rejection}", rejection)
        link.signal(MessageCode.REJECTED, **rejection.to_fields())

    def _end_cancelled(self, link: Link, message: Message) -> None:
        with self._changed:
            self._unstage()
            if not self._reason:  # otherwise this worker has a better reason
                self._reason = f"gloo: the trainer cancelled the update: {message.fields['reason']}"
            self._move(ReceiverState.READY, self._reason, self._rejection)
        link.signal(MessageCode.CANCELLED)

    def _unstage(self) -> None:
        if self._update is not None:
            self._pool.release(self._update.memory)
            self._update = None
        if self._state is ReceiverState.STAGED:
            self._state = ReceiverState.READY

    def _move(self, state: ReceiverState, reason: str, rejection: Rejection | None = None) -> None:
        # The reason is a string: an error's traceback would keep the update's memory alive.
        with self._changed:
            self._state, self._reason, self._rejection = state, reason, rejection
            self._changed.notify_all()


def use_any_core() -> None:
    """Let this thread, and the threads it starts, run on all cores of the machine.

    On a CPU vLLM binds a worker, and every thread that it starts later, to the cores it computes on. A receiver there
    would wait for cores that generation keeps busy.
    """
    if hasattr(os, "sched_setaffinity"):  # Linux; the kernel ignores cores that the container may not use
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
