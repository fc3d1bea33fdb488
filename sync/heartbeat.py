"""Renews this trainer's leases while it computes."""

import threading
from collections.abc import Sequence

from .control import ControlClient
from .errors import SyncError

# A lease survives one beat that is lost.
BEATS_PER_LEASE = 3


class Heartbeat:
    """A daemon thread that ends with `stop`, or with its process."""

    def __init__(self, clients: Sequence[ControlClient], lease_s: float) -> None:
        """Start beating."""
        self._clients = list(clients)
        self._interval_s = lease_s / BEATS_PER_LEASE
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns at once."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            for client in self._clients:
                try:
                    client.renew_lease(self._interval_s)
                except SyncError:  # a replica that is gone, or has let us go: the next push will say so
                    continue
