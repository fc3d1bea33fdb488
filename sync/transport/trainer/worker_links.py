"""The trainer's links to all workers of its group, and the state of what they have sent."""

import os
import select
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sync.closing import Closing
from sync.errors import RejectedError, TransferError
from sync.transport.link import POLL_S, Link
from sync.transport.messages import Message, MessageCode
from tritonlive.wire.rejection import Rejection


class WorkerLinks(Closing):
    """Any thread may call `close`; all other methods belong to one thread."""

    def __init__(self, links: Mapping[int, Link], stall_timeout_s: float) -> None:
        """links: by rank. A worker that sends nothing for `stall_timeout_s` seconds while it is waited for is lost."""
        self._links = dict(links)
        self._stall_timeout_s = stall_timeout_s
        self._last_message_s = dict.fromkeys(links, 0.0)
        self._is_closed = False
        self._acks: dict[int, MessageCode] = {}
        self._rejections: dict[int, Rejection] = {}
        self._poller = select.poll()
        self._ranks = {link.fileno(): rank for rank, link in links.items()}
        for link in links.values():
            self._poller.register(link, select.POLLIN)
        self.num_taken = dict.fromkeys(links, 0)
        """Frames that each worker has read since it joined."""
        self.on_store: Callable[[int, Message], None] = lambda rank, message: None
        self.segment = -1
        """Descriptor of the leader's last segment; -1 when there is none."""

    @property
    def ranks(self) -> list[int]:
        return sorted(self._links)

    @property
    def are_local(self) -> bool:
        """Whether all workers are on this machine and reach memory of this process."""
        return all(link.is_local for link in self._links.values())

    def signal(
        self, code: MessageCode, ranks: Iterable[int] | None = None, *, descriptor: int = -1, **fields: Any
    ) -> None:
        """Send a message to these workers, by default to all. Raises TransferError when one is gone."""
        for rank in self.ranks if ranks is None else ranks:
            self._links[rank].signal(code, descriptor=descriptor, **fields)

    def poll(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for messages, and handle them. Raises TransferError when a worker is gone."""
        if self._is_closed:
            raise TransferError("the group was closed")
        for descriptor, _ in self._poller.poll(timeout * 1000):
            rank = self._ranks[descriptor]
            while (message := self._links[rank].receive(0)) is not None:
                self._last_message_s[rank] = time.monotonic()
                self._handle(rank, message)

    def wait(self, ranks: Iterable[int], is_done: Callable[[int], bool]) -> None:
        """Wait until `is_done(rank)` for each of these workers. Any message of a worker counts as progress.

        Raises TransferError when a worker is gone or shows no progress, or the group is closed.
        """
        began = time.monotonic()
        waited_for = list(ranks)
        while waited_for := [rank for rank in waited_for if not is_done(rank)]:
            self.poll(POLL_S)
            now = time.monotonic()
            for rank in waited_for:
                if not is_done(rank) and now - max(began, self._last_message_s[rank]) > self._stall_timeout_s:
                    peer = self._links[rank].peer
                    raise TransferError(f"{peer} showed no progress for {self._stall_timeout_s:g} s")

    def wait_for_acks(self, code: MessageCode, what: str) -> None:
        """Wait until every worker has sent `code` or a rejection.

        Raises RejectedError when a worker rejects, with `what` in its message; TransferError as `wait`.
        """
        self.wait(self.ranks, lambda rank: self._acks.get(rank) == code or rank in self._rejections)
        self._acks.clear()
        self.raise_rejections(what)

    def raise_rejections(self, what: str) -> None:
        """Raises RejectedError when workers have rejected, with `what` in its message."""
        rejections, self._rejections = dict(sorted(self._rejections.items())), {}
        if rejections:
            reasons = [f"{self._links[rank].peer} {what}: {rejection}" for rank, rejection in rejections.items()]
            raise RejectedError("; ".join(reasons), rejections)

    def cancel(self, reason: str) -> None:
        """End the update at every worker, and read their last messages about it. Raises TransferError."""
        self.signal(MessageCode.CANCEL, reason=reason)
        self.wait(self.ranks, lambda rank: self._acks.get(rank) == MessageCode.CANCELLED)
        self._acks.clear()
        self._rejections.clear()
        self.close_segment()

    def close_segment(self) -> None:
        """Close the segment's descriptor, if there is one."""
        if self.segment >= 0:
            os.close(self.segment)
        self.segment = -1

    def close(self) -> None:
        """Close all links. The workers notice at once."""
        self._is_closed = True
        for link in self._links.values():
            link.close()

    def _handle(self, rank: int, message: Message) -> None:
        if message.code is MessageCode.TAKEN:
            self.num_taken[rank] += 1
        elif message.code is MessageCode.REJECTED:
            self._rejections[rank] = Rejection.from_fields(message.fields)
        elif message.code is MessageCode.STORE:
            self.on_store(rank, message)
        elif message.code is MessageCode.SEGMENT:
            self.close_segment()
            self.segment = message.descriptor
        elif message.code is not MessageCode.PROGRESS:
            self._acks[rank] = message.code
