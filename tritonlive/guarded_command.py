"""Commands that end with the process that started them."""

import os
import shutil
from collections.abc import Sequence

# The kernel sends nothing if the parent ended before the command asked for the signal. $0 is the parent's process id.
UNLESS_ORPHANED = '[ "$PPID" -eq "$0" ] && exec "$@"'


def ends_with_parent(command: Sequence[str], signal: str = "TERM") -> list[str]:
    """`command`, to which the kernel sends `signal` when the thread that started it has ended.

    A process that gets SIGKILL cannot stop its children. Without util-linux's `setpriv`, the command as it is.
    """
    if (setpriv := shutil.which("setpriv")) is None:
        return [*command]
    return [setpriv, "--pdeathsig", signal, "--", "/bin/sh", "-c", UNLESS_ORPHANED, str(os.getpid()), *command]
