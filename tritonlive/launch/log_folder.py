"""The folder of a stack's logs, which one stack at a time may write: each start replaces the files."""

import hashlib
from pathlib import Path

from .errors import LaunchError
from .name_lock import NameHeldError, NameLock

PREFIX = "tritonlive/logs"


class LogFolder:
    """A folder that a stack reserves while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: NameLock | None = None

    def reserve(self) -> None:
        """Reserve it until `release`; does nothing while it is. Raises LaunchError that names the stack that has it."""
        if self._lock is not None:
            return
        # A hash, because a socket's name has at most 107 bytes.
        digest = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:32]
        try:
            self._lock = NameLock(f"{PREFIX}/{digest}")
        except NameHeldError as error:
            raise LaunchError(
                f"the logs in {self.path} are written by tritonlive, {error.holder}; choose others with --log-dir"
            ) from None

    def release(self) -> None:
        """Free it; may be called again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
