"""Renews this trainer's leases while the trainer computes."""

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from sync.errors import SyncError

# A lease survives one renewal that is lost.
RENEWALS_PER_LEASE = 3


class LeaseClient(Protocol):
    """The part of `ControlClient` that a heartbeat uses."""

    def renew_lease(self, timeout: float | None = None) -> None: ...


class Heartbeat:
    """Renews one lease at each replica, in one daemon thread per replica.

    A replica that does not answer does not delay the renewals at other replicas. Each replica has at most one renewal
    under way, which times out when the next one is due. The threads end with `stop`, or with the process.
    """

    def __init__(self, clients: Sequence[LeaseClient], lease_s: float) -> None:
        """Start renewing; the leases have just been taken."""
        self._interval_s = lease_s / RENEWALS_PER_LEASE
        self._stopped = threading.Event()
        for client in clients:
            threading.Thread(target=self._renew, args=(client,), name="lease-heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Stop renewing; returns at once. A renewal under way ends within a third of the lease."""
        self._stopped.set()

    def _renew(self, client: LeaseClient) -> None:
        due = time.monotonic() + self._interval_s
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            # Counted from the start of this renewal, so that a slow answer does not delay the next one.
            due = time.monotonic() + self._interval_s
            try:
                client.renew_lease(self._interval_s)
            except SyncError:  # the replica is gone, or has released this trainer: the next push reports it
                continue
            except (RuntimeError, ValueError):  # httpx and gRPC raise these when the client was closed meanwhile
                if not self._stopped.is_set():
                    raise
