"""The file descriptors that a member of a group needs, and this process's limit."""

from contextlib import suppress
from pathlib import Path

from sync.errors import TransferError

# Descriptors of a gloo device beside its connections: listener, event queue, wake-up pipe; measured.
PER_DEVICE = 4
# Descriptors that joining needs for a moment, and that other threads open meanwhile.
SPARE = 32


def gloo_descriptors(world_size: int, num_devices: int) -> int:
    """Descriptors that a member of a gloo group opens: on each device a connection to every other member."""
    return num_devices * (world_size - 1 + PER_DEVICE)


def ensure_descriptors(needed: int, what: str) -> None:
    """Make sure that `needed` more descriptors can be opened; increases this process's soft limit when necessary.

    Raises TransferError, with the limit and the remedy, when the hard limit is too low.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system: no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    total = _num_open() + needed + SPARE
    if soft == resource.RLIM_INFINITY or total <= soft:
        return
    if hard == resource.RLIM_INFINITY or total <= hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return
    raise TransferError(
        f"{what} needs {needed} file descriptors, {total} with what is open in this process, but the limit is {hard}; "
        f"raise it before the process starts: ulimit -n {total}"
    )


def _num_open() -> int:
    """Descriptors that this process has open."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(list(Path(folder).iterdir()))
    return 0
