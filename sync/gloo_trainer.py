"""The trainer's end of a gloo push: packs tensors into buckets and sends them.

Shaped like vLLM's `TrainerWeightTransferEngine` (`send_weights` drives start, transfer and finish through the control
client), but it needs no vLLM.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from .broadcasts import BroadcastSender
from .buckets import DEFAULT_BUCKET_BYTES, Bucket, Pieces, lay_out
from .digest import digest, pack_digests
from .errors import RejectedError, TransferError
from .gloo import BUCKETS_UNDER_WAY, UNCHANGED, GlooGroup, Membership, host_store
from .shared_memory import Host
from .sources import WeightSource
from .transports import Sender

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all."""


class SyncClient(Protocol):
    """vLLM's `VLLMWeightSyncClient`, as far as it is needed here."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


@dataclass(frozen=True)
class GlooTrainerInitInfo:
    """The group: `world_size` counts the trainer; port 0 picks a free one; timeout in seconds.

    With `shared_memory` the bytes go through memory if all workers are on this machine.
    """

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    keep_previous: bool = True
    num_devices: int = BUCKETS_UNDER_WAY
    shared_memory: bool = True


class GlooTrainer:
    """Rank 0 of the group; `source` is replaced before each `send_weights`."""

    def __init__(
        self, init_info: GlooTrainerInitInfo, client: SyncClient, source: WeightSource, progress: Progress | None = None
    ) -> None:
        """Host the rendezvous, call the workers in, and wait until all have joined. Raises TransferError."""
        self.client = client
        self.source = source
        self.progress = progress
        self._bucket_bytes = init_info.bucket_bytes
        store, port = host_store(init_info.master_address, init_info.master_port, init_info.timeout_s)
        # A name nobody can guess: whoever reaches the port but was not told it cannot take a worker's place.
        name = secrets.token_hex(16)
        with Host(name, is_wanted=init_info.shared_memory) as host:
            own = Membership(
                init_info.master_address,
                port,
                0,
                init_info.world_size,
                name,
                init_info.timeout_s,
                init_info.num_devices,
                host.address,
            )
            wire = asdict(own) | {"rank_offset": 1, "keep_previous": init_info.keep_previous}
            del wire["rank"]
            client.init_weight_transfer_engine(wire)
            self._group = GlooGroup(store, own, init_info.master_address)
            self._bytes: Sender = host.meet(self._group) or BroadcastSender(self._group)

    @property
    def transport(self) -> str:
        """How the bytes go, for a report."""
        return self._bytes.transport

    def send_weights(self) -> None:
        """One update: start, transfer, finish. Raises TransferError before `finish` when a worker objects."""
        metas = self.source.metadata()
        self.client.start_weight_update()
        self.client.update_weights(
            {
                "names": [meta.name for meta in metas],
                "dtype_names": [meta.dtype_name for meta in metas],
                "shapes": [list(meta.shape) for meta in metas],
            }
        )
        self._expect_consent("does not take the update")
        self._send(lay_out(metas, self._bucket_bytes))
        self._expect_consent("refuses what arrived")
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        """Leave the group; returns at once."""
        self._group.close()
        self._bytes.close()

    def abort(self) -> None:
        """After a failure: as `shutdown`, which waits for nothing."""
        self.shutdown()

    @torch.no_grad()
    def _send(self, buckets: list[Bucket]) -> None:
        total, tensors = sum(bucket.num_bytes for bucket in buckets), iter(self.source)
        before = self._bytes.num_sent
        digests: list[int] = []
        for bucket in buckets:
            data = self._bytes.send(_pieces(bucket, tensors), bucket.num_bytes)
            digests += [digest(data[slot.offset : slot.end]) for slot in bucket.slots]
            self._report(self._bytes.num_sent - before, total)
        self._bytes.flush()
        self._report(total, total)
        self._group.wait(self._group.broadcast(pack_digests(digests)))

    def _report(self, sent: int, total: int) -> None:
        if self.progress is not None:
            self.progress(sent, total)

    def _expect_consent(self, what: str) -> frozenset[int]:
        """The ranks whose model holds the very same tensors already. Raises RejectedError when a worker objects."""
        verdicts = self._group.gather_verdicts()
        objections = {rank: text for rank, text in verdicts.items() if text != UNCHANGED}
        if objections:
            raise RejectedError("; ".join(f"worker {rank} {what}: {text}" for rank, text in objections.items()))
        return frozenset(verdicts)


def _pieces(bucket: Bucket, tensors: Iterator[tuple[str, torch.Tensor]]) -> Pieces:
    """The bytes of the bucket's tensors; where they can be, the tensors' own."""
    named = [_next_tensor(bucket, index, tensors) for index in range(len(bucket.slots))]
    return [
        (slot.offset, tensor.to("cpu").contiguous().reshape(-1).view(torch.uint8))
        for slot, tensor in zip(bucket.slots, named, strict=True)
    ]


def _next_tensor(bucket: Bucket, index: int, tensors: Iterator[tuple[str, torch.Tensor]]) -> torch.Tensor:
    """The source's next tensor, compared with what was announced: else both sides would cut the stream differently."""
    meta = bucket.slots[index].meta
    name, tensor = next(tensors, ("nothing", torch.empty(0)))
    if (name, tensor.dtype, tuple(tensor.shape)) != (meta.name, meta.dtype, meta.shape):
        raise TransferError(f"the source announced {meta.name} {meta}, but yielded {name} {tuple(tensor.shape)}")
    return tensor
