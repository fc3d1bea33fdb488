"""The trainer of the push loads. It pushes weights that none of the replicas has."""

from collections.abc import Sequence
from pathlib import Path

from bench.weights import weight_set
from sync import PushReport, WeightSync

PUSH_TIMEOUT_S = 120.0
NUM_SETS = 3
"""Number of weight sets. Two replicas may hold different sets; a third one is new to both."""
UNMEASURED_PUSHES = 3
"""Number of pushes until a worker has allocated memory for the staged, the current and the previous version."""


class Trainer:
    """Pushes from a CPU. Its group is formed and has pushed before a measurement."""

    def __init__(self, checkpoint: Path) -> None:
        self._sets = [weight_set(checkpoint, seed) for seed in range(NUM_SETS)]
        self._held: dict[str, int] = {}  # set of each replica; a new replica has the checkpoint, which is set 0
        self._sync: WeightSync | None = None
        self._addresses: tuple[str, ...] = ()

    def connect(self, addresses: Sequence[str]) -> None:
        """Disconnect from other replicas, and push until these replicas and the group are warm."""
        if self._addresses == tuple(addresses):
            return
        self.close()
        # Replicas that are warm need only the push that forms the group.
        pushes = 1 if all(address in self._held for address in addresses) else UNMEASURED_PUSHES
        self._sync = WeightSync(list(addresses), backend="gloo", timeout=PUSH_TIMEOUT_S)
        self._addresses = tuple(addresses)
        for _ in range(pushes):
            self.push(addresses)

    def push(self, addresses: Sequence[str]) -> PushReport:
        """Push a set that none of the replicas has.

        Raises:
            RuntimeError: if a replica already had these weights, so that nothing was measured.
        """
        if self._addresses != tuple(addresses) or self._sync is None:
            raise RuntimeError("connect to the replicas first")
        held = [self._held.get(address, 0) for address in addresses]
        fresh = next(number for number in range(NUM_SETS) if number not in held)
        report = self._sync.push(self._sets[fresh])
        if report.unchanged:
            raise RuntimeError(f"{', '.join(report.unchanged)} had these weights already: nothing was measured")
        self._held |= dict.fromkeys(addresses, fresh)
        return report

    def close(self) -> None:
        """Disconnect from the replicas."""
        if self._sync is not None:
            self._sync.close()
        self._sync, self._addresses = None, ()
