"""The worker's end of a transport (broadcasts.py, shared_transfer.py); frames.FrameSender is the trainer's."""

from abc import abstractmethod
from collections.abc import Callable

from sync.closing import Closing
from sync.transport.layout import Layout
from sync.transport.messages import Message
from sync.transport.worker.memory import UpdateMemory
from sync.weights.findings import Findings

ReportBytes = Callable[[int], None]
"""Called with the bytes of memory allocated so far, so that a long allocation counts as progress."""


class FrameReceiver(Closing):
    """Receives one update after another: prepare, take every frame, finish; or discard at any point."""

    @abstractmethod
    def prepare(self, layout: Layout, report: ReportBytes) -> None:
        """Find memory for an update. Raises StagingMemoryError when there is too little."""

    @abstractmethod
    def take(self, message: Message) -> None:
        """Take the frame that the message is about, now or in `settle`. Raises TransferError."""

    def settle(self) -> bool:
        """Go on with what `take` has begun; False when there is nothing. Raises TransferError."""
        return False

    @abstractmethod
    def finish(self) -> tuple[UpdateMemory, Findings]:
        """The update's memory and what was found in it, when all frames were taken. Raises TransferError."""

    @abstractmethod
    def discard(self) -> None:
        """Release the memory of an update that will not be finished."""
