"""Whether this process may open as many descriptors as its place in a group needs."""

from contextlib import suppress
from pathlib import Path

from sync.errors import TransferError

# What a gloo device opens beside its connections: listener, event queue, wake-up pipe; measured.
PER_DEVICE = 4
# What else joining takes for a moment, and other threads open meanwhile.
SPARE = 32


def gloo_descriptors(world_size: int, num_devices: int) -> int:
    """Descriptors that a member of a gloo group opens: a connection to each other member, per device."""
    return num_devices * (world_size - 1 + PER_DEVICE)


def ensure_descriptors(needed: int, what: str) -> None:
    """Make sure that `needed` more descriptors can be opened; raises this process's soft limit when it is too low.

    Raises TransferError, naming the limit and what helps, when the hard limit is too low as well.
    """
    try:
        import resource
    except ImportError:  # no POSIX system, no such limit
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
