"""The trainer's interface of a transport: shared memory (shared_sender.py) or gloo (broadcast_sender.py)."""

from abc import abstractmethod

import numpy as np

from sync.closing import Closing
from sync.transport.messages import TransportName


class FrameSender(Closing):
    """Sends frames to all workers, in order."""

    transport: TransportName
    num_sent = 0
    """Bytes that have arrived at the workers, frame headers included."""

    @abstractmethod
    def free_frame(self) -> np.ndarray:
        """A frame to fill, uint8[FRAME_BYTES]. Waits until one is free. Raises TransferError."""

    @abstractmethod
    def send(self, num_bytes: int) -> None:
        """Send the first `num_bytes` of the frame that `free_frame` returned last. Raises TransferError."""

    @abstractmethod
    def flush(self) -> None:
        """Wait until all frames have arrived. Raises TransferError."""

    def hand_over(self) -> None:
        """After the digests: give workers that got no frames what other workers staged. Raises TransferError."""
