"""The trainer's end of a gloo push: packs tensors into buckets and broadcasts them.

Shaped like vLLM's `TrainerWeightTransferEngine` (`send_weights` drives start, transfer and finish through the control
client), but it needs no vLLM.
"""

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from .buckets import DEFAULT_BUCKET_BYTES, Bucket, host_buffer, lay_out
from .digest import digest, pack_digests
from .errors import RejectedError, TransferError
from .gloo import BUCKETS_UNDER_WAY, UNCHANGED, GlooGroup, Work, host_store
from .sources import WeightSource

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all."""


class SyncClient(Protocol):
    """vLLM's `VLLMWeightSyncClient`, as far as it is needed here."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(
        self, weight_version: str | None = None, unchanged: frozenset[int] = frozenset()
    ) -> None: ...


@dataclass(frozen=True)
class GlooTrainerInitInfo:
    """The group: `world_size` counts the trainer; port 0 picks a free one; timeout in seconds."""

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    keep_previous: bool = True
    num_devices: int = BUCKETS_UNDER_WAY


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
        wire = asdict(init_info) | {"master_port": port, "rank_offset": 1, "group_name": name}
        del wire["bucket_bytes"]
        client.init_weight_transfer_engine(wire)
        self._group = GlooGroup(
            store,
            0,
            init_info.world_size,
            init_info.master_address,
            name,
            init_info.timeout_s,
            init_info.num_devices,
        )

    def send_weights(self) -> None:
        """One update: start, transfer, finish. Raises TransferError before `finish` when a worker objects."""
        metas = self.source.metadata()
        self.client.start_weight_update()
        self.client.update_weights(
            {
                "names": [meta.name for meta in metas],
                "dtype_names": [meta.dtype_name for meta in metas],
                "shapes": [list(meta.shape) for meta in metas],
                "bucket_bytes": self._bucket_bytes,
            }
        )
        self._expect_consent("does not take the update")
        self._broadcast(lay_out(metas, self._bucket_bytes))
        unchanged = self._expect_consent("refuses what arrived")
        self.client.finish_weight_update(unchanged=unchanged)

    def shutdown(self) -> None:
        """Leave the group; returns at once."""
        self._group.close()

    @torch.no_grad()
    def _broadcast(self, buckets: list[Bucket]) -> None:
        total, sent = sum(bucket.num_bytes for bucket in buckets), 0
        tensors = iter(self.source)
        # Buffers are filled in turn, each again when its broadcast is over. A tensor sent as it is stays referenced.
        size = max((bucket.num_bytes for bucket in buckets if len(bucket.slots) > 1), default=0)
        buffers = [host_buffer(size) for _ in range(BUCKETS_UNDER_WAY)]
        digests: list[int] = []
        under_way: deque[tuple[Bucket, torch.Tensor, Work]] = deque()
        for number, bucket in enumerate(buckets):
            while len(under_way) >= BUCKETS_UNDER_WAY:
                sent += self._wait_for_oldest(under_way)
                self._report(sent, total)
            data = _pack(bucket, tensors, buffers[number % BUCKETS_UNDER_WAY])
            under_way.append((bucket, data, self._group.broadcast(data)))
            digests += [digest(data[slot.offset : slot.end]) for slot in bucket.slots]
        while under_way:
            sent += self._wait_for_oldest(under_way)
            self._report(sent, total)
        self._group.wait(self._group.broadcast(pack_digests(digests)))

    def _wait_for_oldest(self, under_way: "deque[tuple[Bucket, torch.Tensor, Work]]") -> int:
        bucket, _, work = under_way.popleft()
        self._group.wait(work)
        return bucket.num_bytes

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


def _pack(bucket: Bucket, tensors: Iterator[tuple[str, torch.Tensor]], buffer: torch.Tensor) -> torch.Tensor:
    """The bucket's bytes, uint8[num_bytes]: a single tensor in host memory as it is, several copied into the buffer."""
    if len(bucket.slots) == 1:
        tensor = _next_tensor(bucket, 0, tensors).to("cpu").contiguous()
        if tensor.numel():
            return tensor.reshape(-1).view(torch.uint8)
        return torch.zeros(bucket.num_bytes, dtype=torch.uint8)
    data = buffer[: bucket.num_bytes]
    for index, slot in enumerate(bucket.slots):
        tensor = _next_tensor(bucket, index, tensors)
        data[slot.offset : slot.end].view(slot.meta.dtype).view(slot.meta.shape).copy_(tensor)
    return data


def _next_tensor(bucket: Bucket, index: int, tensors: Iterator[tuple[str, torch.Tensor]]) -> torch.Tensor:
    """The source's next tensor, compared with what was announced: else both sides would cut the stream differently."""
    meta = bucket.slots[index].meta
    name, tensor = next(tensors, ("nothing", torch.empty(0)))
    if (name, tensor.dtype, tuple(tensor.shape)) != (meta.name, meta.dtype, meta.shape):
        raise TransferError(f"the source announced {meta.name} {meta}, but yielded {name} {tuple(tensor.shape)}")
    return tensor
