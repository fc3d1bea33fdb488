"""A push's bytes by gloo broadcasts: to workers anywhere."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from .buckets import Bucket, Pieces, cut, gather, host_buffer, total_bytes
from .findings import Findings
from .gloo import BUCKETS_UNDER_WAY, GlooGroup, Work
from .memory import HostMemory, MemoryPool
from .transports import Receive, Receiver, Sender


class BroadcastSender(Sender):
    """The trainer's end; some broadcasts are under way at a time."""

    transport = "gloo"

    def __init__(self, group: GlooGroup) -> None:
        self._group = group
        self._under_way: deque[tuple[torch.Tensor, Work]] = deque()
        # Filled in turn, each again when the broadcast of what it held is over.
        self._buffers = deque([torch.empty(0, dtype=torch.uint8)] * BUCKETS_UNDER_WAY)

    def send(self, pieces: Pieces, num_bytes: int) -> torch.Tensor:
        """As the base class."""
        while len(self._under_way) >= BUCKETS_UNDER_WAY:
            self._wait_for_oldest()
        data = gather(pieces, num_bytes, self._buffer)
        self._under_way.append((data, self._group.broadcast(data)))
        return data

    def flush(self) -> None:
        """As the base class."""
        while self._under_way:
            self._wait_for_oldest()

    def close(self) -> None:
        """Nothing: the group is closed by itself."""

    def _buffer(self, num_bytes: int) -> torch.Tensor:
        buffer = self._buffers.popleft()
        if len(buffer) < num_bytes:
            buffer = host_buffer(num_bytes)
        self._buffers.append(buffer)
        return buffer[:num_bytes]

    def _wait_for_oldest(self) -> None:
        data, work = self._under_way.popleft()
        self._group.wait(work)
        self.num_sent += len(data)


class BroadcastReceiver(Receiver):
    """A worker's end."""

    def __init__(self, group: GlooGroup, kept: MemoryPool) -> None:
        self._group = group
        self._kept = kept

    def prepare(self, buckets: Sequence[Bucket]) -> Receive:
        """As the base class."""
        num_bytes = total_bytes(buckets)
        memory = self._kept.take(HostMemory, num_bytes, lambda _: True, lambda: HostMemory(num_bytes))
        return lambda: (memory, Findings.examine(buckets, self._fill(cut(buckets, memory.data))))

    def close(self) -> None:
        """Nothing: the group is closed by itself."""

    def _fill(self, places: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Each when it is full."""
        arriving: deque[tuple[torch.Tensor, Work]] = deque()
        to_come = iter(places)
        while True:
            while len(arriving) < BUCKETS_UNDER_WAY and (place := next(to_come, None)) is not None:
                arriving.append((place, self._group.broadcast(place)))
            if not arriving:
                return
            place, work = arriving.popleft()
            self._group.wait(work)
            yield place
