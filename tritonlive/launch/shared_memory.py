"""A stack's names in the machine's shared memory, and the removal of what killed stacks have left there."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - Linux's shared memory, not our temporary files
LOCK = "lock"
LOCK_NAME = re.compile(rf"tritonlive_\d+_\d+_{LOCK}")


class SharedMemory:
    """All names that start with `prefix`: the regions of Triton's Python backend, and folders of sockets.

    A killed process removes none of them. While the stack runs, its launcher holds a lock on one file of that prefix:
    it is freed however the launcher ends, and unlike a process id it means the same in every container that shares the
    memory.
    """

    def __init__(self, port: int) -> None:
        """port: one that no other stack of this process has."""
        self.prefix = f"tritonlive_{os.getpid()}_{port}_"
        self._lock: int | None = None

    def reserve(self) -> None:
        """Take the lock until `release`, and remove what stacks without a launcher have left."""
        if self._lock is not None:
            return
        # The file gets its name when it is locked: another start would take it for a dead launcher's.
        self._lock, unnamed = tempfile.mkstemp(prefix=f".{self.prefix}", dir=FOLDER)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        Path(unnamed).rename(FOLDER / f"{self.prefix}{LOCK}")
        for path in FOLDER.glob("tritonlive_*"):
            if LOCK_NAME.fullmatch(path.name):
                with contextlib.suppress(OSError):  # a living stack's, another user's, or gone by now
                    _remove_unless_held(path)

    def make_folder(self) -> str:
        """Make a folder for this user alone."""
        return tempfile.mkdtemp(prefix=self.prefix, dir=FOLDER)

    def clear(self) -> None:
        """Remove everything but the lock."""
        _remove(self.prefix)

    def release(self) -> None:
        """Remove everything and free the lock; may be called again."""
        self.clear()
        if self._lock is not None:
            (FOLDER / f"{self.prefix}{LOCK}").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def _remove_unless_held(lock: Path) -> None:
    """Remove all names of a lock's prefix. Raises OSError if a launcher holds it, or if it is not this user's."""
    file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_uid == os.geteuid():  # the name of a stranger's file says nothing
            _remove(lock.name.removesuffix(LOCK))
            lock.unlink()
    finally:
        os.close(file)


def _remove(prefix: str) -> None:
    for path in FOLDER.glob(f"{prefix}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != f"{prefix}{LOCK}":
            path.unlink(missing_ok=True)
