"""The interface that both transports implement for the trainer: frames go out, in order."""

from abc import abstractmethod

import numpy as np

from sync.closing import Closing


class FrameSender(Closing):
    """The trainer's end of a transport (broadcasts.py, shared_transfer.py)."""

    transport: str
    """Its name in a report."""
    num_sent = 0
    """Bytes that have arrived at the workers, frame headers included."""

    @abstractmethod
    def free_frame(self) -> np.ndarray:
        """uint8[FRAME_BYTES] to fill; waits until there is one. Raises TransferError."""

    @abstractmethod
    def send(self, num_bytes: int) -> None:
        """Send that much of the frame that `free_frame` returned last. Raises TransferError."""

    @abstractmethod
    def flush(self) -> None:
        """Wait until all frames have arrived. Raises TransferError."""

    def hand_over(self) -> None:
        """Pass what some workers staged on to the others, after the digests. Raises TransferError."""
