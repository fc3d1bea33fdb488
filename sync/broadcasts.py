"""A push's bytes by gloo broadcasts: to workers anywhere."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from .buckets import host_buffer
from .closing import Closing
from .gloo import BUCKETS_UNDER_WAY, GlooGroup, Work


class BroadcastSender(Closing):
    """The trainer's way to send; some broadcasts are under way at a time."""

    def __init__(self, group: GlooGroup) -> None:
        self.num_sent = 0  # bytes that all workers have
        self._group = group
        self._under_way: deque[tuple[torch.Tensor, Work]] = deque()
        # Filled in turn, each again when the broadcast of what it held is over.
        self._buffers = deque([torch.empty(0, dtype=torch.uint8)] * BUCKETS_UNDER_WAY)

    def buffer(self, num_bytes: int) -> torch.Tensor:
        """uint8[num_bytes] to pack the next bytes into."""
        self._make_room()
        buffer = self._buffers.popleft()
        if buffer.numel() < num_bytes:
            buffer = host_buffer(num_bytes)
        self._buffers.append(buffer)
        return buffer[:num_bytes]

    def send(self, data: torch.Tensor) -> None:
        """uint8 data[num_bytes], which must stay as it is until `flush`, or be a `buffer`. Raises TransferError."""
        self._make_room()
        self._under_way.append((data, self._group.broadcast(data)))

    def flush(self) -> None:
        """Until all has arrived. Raises TransferError."""
        while self._under_way:
            self._wait_for_oldest()

    def close(self) -> None:
        """Nothing: the group is closed by itself."""

    def _make_room(self) -> None:
        while len(self._under_way) >= BUCKETS_UNDER_WAY:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        data, work = self._under_way.popleft()
        self._group.wait(work)
        self.num_sent += data.numel()


class BroadcastReceiver(Closing):
    """A worker's way to receive."""

    def __init__(self, group: GlooGroup) -> None:
        self._group = group

    def receive(self, places: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Fill them in order, uint8[num_bytes] each; yields each when it is full. Raises TransferError."""
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

    def close(self) -> None:
        """Nothing: the group is closed by itself."""
