"""The lease on a replica's weights: one trainer at a time, for as long as it renews its lease.

A trainer that names itself (`holder`) renews its lease with every call and with a heartbeat. When the lease runs out,
its group is torn down. vLLM's and TRL's clients know no leases: such an anonymous trainer is identified by the address
of the rendezvous that it hosts, or by its GPU if the workers host it (TRL up to 1.10). It sends no heartbeat, so the
end of its lease has no effect until another trainer comes.
"""

import time
from typing import Any

from tritonlive.backend.tensors import BadTensor, Conflict
from tritonlive.wire.limits import MAX_LEASE_S, MAX_NAME, MIN_LEASE_S

# After this long without traffic, an anonymous trainer is replaced by the next one.
ANONYMOUS_LEASE_S = 60.0


class Lease:
    """At most one holder. `generation` grows each time the lease is taken."""

    def __init__(self) -> None:
        self.holder: str | None = None
        self.seconds = 0.0
        self.is_anonymous = False
        self.generation = 0
        self._renewed_at = 0.0

    @property
    def is_held(self) -> bool:
        return self.holder is not None

    @property
    def left_s(self) -> float:
        """Seconds until the lease expires; 0 if it has expired or has no holder."""
        return max(0.0, self._renewed_at + self.seconds - time.monotonic()) if self.is_held else 0.0

    def check_free_for(self, holder: str) -> None:
        """Raises Conflict while another trainer holds it."""
        if self.holder != holder and self.left_s > 0:
            raise Conflict(
                f"weights: trainer {self.holder} is connected; its lease runs out in {self.left_s:.0f} s "
                "unless it renews it"
            )

    def take(self, holder: str, seconds: float, *, is_anonymous: bool) -> None:
        """Give the lease to `holder` and replace the holder before. Call `check_free_for` first."""
        self.holder, self.seconds, self.is_anonymous = holder, seconds, is_anonymous
        self.generation += 1
        self.renew()

    def require(self, holder: str | None) -> None:
        """Raises Conflict unless the lease is free or `holder` holds it. None stands for the anonymous holder."""
        if self.holder is None or (holder is None and self.is_anonymous) or holder == self.holder:
            return
        who = "a client without a lease" if holder is None else holder
        raise Conflict(f"weights: {who} cannot do this: trainer {self.holder} is connected")

    def renew(self) -> None:
        self._renewed_at = time.monotonic()

    def release(self) -> None:
        self.holder = None

    def describe(self) -> dict[str, Any] | None:
        """`holder`, its duration in `seconds`, and the remaining seconds in `left_s`; None without a holder."""
        if not self.is_held:
            return None
        return {"holder": self.holder, "seconds": self.seconds, "left_s": round(self.left_s, 1)}


def read_holder(init_info: dict[str, Any]) -> tuple[str, float, bool]:
    """Remove the lease's fields from `init_info`. Returns holder, seconds, is_anonymous. Raises BadTensor."""
    named, seconds = init_info.pop("holder", None), init_info.pop("lease_s", ANONYMOUS_LEASE_S)
    if named is not None and (not isinstance(named, str) or not 0 < len(named) <= MAX_NAME):
        raise BadTensor("init_info", f"holder: must be a string of 1 to {MAX_NAME} characters")
    if not isinstance(seconds, int | float) or not MIN_LEASE_S <= seconds <= MAX_LEASE_S:
        raise BadTensor("init_info", f"lease_s: must be {MIN_LEASE_S:g} to {MAX_LEASE_S:g} seconds, got {seconds!r}")
    if named is not None:
        return named, float(seconds), False
    address, port = init_info.get("master_address", "unknown"), init_info.get("master_port", "")
    gpu = init_info.get("client_device_uuid")
    return f"{address}:{port}" if gpu is None else f"GPU {gpu}", ANONYMOUS_LEASE_S, True
