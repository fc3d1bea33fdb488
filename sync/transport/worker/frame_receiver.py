"""The worker's interface of a transport: shared memory (shared_receivers.py) or gloo (broadcast_receiver.py)."""

from abc import abstractmethod
from collections.abc import Callable

from sync.closing import Closing
from sync.transport.layout import Layout
from sync.transport.messages import Message
from sync.transport.worker.memory import UpdateMemory
from sync.weights.findings import Findings

ReportBytes = Callable[[int], None]
"""Called with the bytes allocated so far: a long allocation counts as progress."""


class FrameReceiver(Closing):
    """Receives updates: `prepare`, `take` for every frame, `finish`; or `discard` at any point."""

    @abstractmethod
    def prepare(self, layout: Layout, report: ReportBytes) -> None:
        """Find memory for an update. Raises StagingMemoryError when there is too little."""

    @abstractmethod
    def take(self, message: Message) -> None:
        """Begin to read the frame that the message announces; `settle` may finish it. Raises TransferError."""

    def settle(self) -> bool:
        """Finish the oldest frame that `take` began. False when there is none. Raises TransferError."""
        return False

    @abstractmethod
    def finish(self) -> tuple[UpdateMemory, Findings]:
        """After the last frame: the update's memory, and the findings in it. Raises TransferError."""

    @abstractmethod
    def discard(self) -> None:
        """Release the memory of an update that will not be finished."""
