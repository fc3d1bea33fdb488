"""The trainer's engine for backend "gloo": it announces tensors, and sends their bytes in frames.

One update, in this order (messages.MessageCode):

    control call                announces every tensor's name, dtype and shape
    worker → trainer   READY    when it has memory for them, or REJECTED; PROGRESS meanwhile
    trainer → workers  frames   in the order in which the source yields tensors; each worker answers TAKEN
    trainer → workers  DIGESTS  of all tensors
    worker → trainer   STAGED   when the bytes that arrived are those sent, and finite; or REJECTED
    control call                finish

Like vLLM's `TrainerWeightTransferEngine` it drives start, transfer and finish through the control client, but it needs
no vLLM.
"""

import os
import secrets
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sync.errors import ChangedError, RejectedError, TransferError
from sync.transport.descriptors import ensure_descriptors, gloo_descriptors
from sync.transport.gloo import GlooGroup, Membership, devices_for
from sync.transport.link import STALL_TIMEOUT_S
from sync.transport.messages import MessageCode
from sync.transport.progress import Progress
from sync.transport.trainer.broadcast_sender import BroadcastSender
from sync.transport.trainer.frame_sender import FrameSender
from sync.transport.trainer.frame_writer import FrameWriter
from sync.transport.trainer.handshake import TrainerHandshake
from sync.transport.trainer.store import trainer_store
from sync.transport.trainer.worker_links import WorkerLinks
from sync.weights.weight_source import ParamMeta, WeightSource

SECRET_BYTES = 32


class JoinClient(Protocol):
    """Calls the workers into the trainer's group."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...


class UpdateClient(Protocol):
    """The control calls of one update: the rest of vLLM's `VLLMWeightSyncClient`."""

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self) -> None: ...


@dataclass(frozen=True)
class GlooTrainerInitInfo:
    """The group: `world_size` counts the trainer; port 0 picks a free one; timeouts in seconds.

    With `shared_memory` the bytes travel through memory if all workers are on this machine. A worker that shows no
    progress for `stall_timeout_s` while it is waited for is lost; while it shows progress it may take any time.
    """

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float
    keep_previous: bool = True
    shared_memory: bool = True
    stall_timeout_s: float = STALL_TIMEOUT_S


class GlooTrainer:
    """Rank 0 of the group (a push's `TrainerEngine`)."""

    def __init__(self, init_info: GlooTrainerInitInfo, client: JoinClient) -> None:
        """Call the workers in, and wait until all have joined. Raises TransferError, ValueError."""
        num_workers = init_info.world_size - 1
        if num_workers < 1:
            raise ValueError(f"world_size: must be at least 2, the trainer and a worker, got {init_info.world_size}")
        ensure_descriptors(num_workers, f"a group with {num_workers} workers")
        secret = secrets.token_hex(SECRET_BYTES)
        address = init_info.master_address
        self._handshake = TrainerHandshake(
            address, init_info.master_port, secret, is_local_wanted=init_info.shared_memory
        )
        self._workers = WorkerLinks({}, init_info.stall_timeout_s)
        try:
            membership = Membership(
                master_address=address,
                master_port=self._handshake.port,
                rank=0,
                world_size=init_info.world_size,
                secret=secret,
                timeout_s=init_info.timeout_s,
                num_devices=devices_for(init_info.world_size),
                local_address=self._handshake.local_address,
            )
            wire = asdict(membership) | {"rank_offset": 1, "keep_previous": init_info.keep_previous}
            del wire["rank"]
            client.init_weight_transfer_engine(wire)
            links = self._handshake.accept(num_workers, init_info.timeout_s)
            self._workers = WorkerLinks(links, init_info.stall_timeout_s)
            self._sender = _share_ring(self._workers) or _form_group(self._workers, membership)
            self._workers.wait_for_acks(MessageCode.JOINED, "does not join")
        except BaseException:
            self._workers.close()
            self._handshake.close()
            raise

    @property
    def transport(self) -> str:
        """How the bytes travel, for a report."""
        return self._sender.transport

    def send_weights(self, client: UpdateClient, source: WeightSource, progress: Progress | None = None) -> None:
        """One update: start, transfer, finish. `progress` is called after each tensor.

        Before `finish`, raises RejectedError when a worker rejects the update, SourceError when the source does not
        yield what it announced, and TransferError when tensors changed while they were read; the group can be used
        again. Raises TransferError when a worker is lost; then, as after a control call that failed, it cannot.
        """
        try:
            metas = source.metadata()
            client.start_weight_update()
            client.update_weights(
                {
                    "names": [meta.name for meta in metas],
                    "dtype_names": [meta.dtype_name for meta in metas],
                    "shapes": [list(meta.shape) for meta in metas],
                }
            )
        except BaseException:
            self.shutdown()
            raise
        try:
            self._workers.wait_for_acks(MessageCode.READY, "does not take the update")
            digests = self._send(source, metas, progress)
            _require_unchanged(source)
            self._workers.signal(MessageCode.DIGESTS, digests=digests)
            self._sender.hand_over()
            self._workers.wait_for_acks(MessageCode.STAGED, "rejects what arrived")
        except BaseException as error:
            self._cancel(error)
            raise
        client.finish_weight_update()

    def shutdown(self) -> None:
        """Leave the group. Returns at once. Any thread may call it; a running `send_weights` ends."""
        self._workers.close()
        self._sender.close()
        self._handshake.close()

    def abort(self) -> None:
        """Give up after a failure: the same as `shutdown`, which waits for nothing."""
        self.shutdown()

    def _send(self, source: WeightSource, metas: list[ParamMeta], progress: Progress | None) -> list[int]:
        """Send all tensors; returns their digests."""
        writer = FrameWriter(metas, self._sender)
        total, before = sum(meta.num_bytes for meta in metas), self._sender.num_sent
        report = progress if progress is not None else _report_nothing
        for name, tensor in source:
            writer.write(name, tensor)
            report(min(self._sender.num_sent - before, total), total)
        digests = writer.finish()
        report(total, total)
        return digests

    def _cancel(self, error: BaseException) -> None:
        """End the update at the workers. Leave the group when that is not possible."""
        is_lost = isinstance(error, TransferError) and not isinstance(error, RejectedError | ChangedError)
        try:
            if is_lost:
                self.shutdown()
            else:
                self._sender.flush()
                self._workers.cancel(str(error) or type(error).__name__)
        except TransferError:
            self.shutdown()


def _report_nothing(sent: int, total: int) -> None:
    """For a push whose caller asks for no progress."""


def _require_unchanged(source: WeightSource) -> None:
    """Raises ChangedError when tensors changed while the source was read."""
    if changed := source.changed():
        raise ChangedError(f"changed while they were read: {', '.join(changed)}; push while no optimizer step runs")


def _share_ring(workers: WorkerLinks) -> FrameSender | None:
    """A sender through shared memory; None when a worker is on another machine, or memory for a ring is lacking."""
    if not workers.are_local:
        return None
    from sync.transport.ring import (
        LEADER_RANK,
        create_ring,  # Linux only, as all of shared memory
    )
    from sync.transport.trainer.shared_sender import SharedSender

    try:
        descriptor, ring = create_ring()
    except OSError:
        return None
    try:
        workers.signal(MessageCode.TRANSPORT, [LEADER_RANK], descriptor=descriptor, name=SharedSender.transport)
    finally:
        os.close(descriptor)
    followers = [rank for rank in workers.ranks if rank != LEADER_RANK]
    workers.signal(MessageCode.TRANSPORT, followers, name=SharedSender.transport)
    return SharedSender(ring, workers)


def _form_group(workers: WorkerLinks, membership: Membership) -> FrameSender:
    """A sender by gloo broadcasts. Raises TransferError."""
    needed = gloo_descriptors(membership.world_size, membership.num_devices)
    ensure_descriptors(needed, f"a gloo group of {membership.world_size} members")
    workers.signal(MessageCode.TRANSPORT, name=BroadcastSender.transport)
    store = trainer_store(workers, membership.timeout_s)
    group = GlooGroup(store, membership, membership.master_address, lambda: workers.poll(0))
    return BroadcastSender(group, workers)
