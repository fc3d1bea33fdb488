"""The group of one trainer and all workers of its replicas: leases, calling the workers in, releasing the replicas."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sync.control.client import ControlClient
from sync.control.fleet import CLEAN_UP_TIMEOUT_S, Fleet, OnFailure, ReplicaCall
from sync.deadline import Deadline
from sync.errors import SyncError


@dataclass(frozen=True)
class LeaseRequest:
    """A trainer's request for a replica's lease. The fields have their names on the wire."""

    holder: str
    lease_s: float
    """Without a renewal the replica releases the trainer after that many seconds."""
    timeout_s: float
    """How long the trainer's pushes may take."""


class FleetGroup:
    """This trainer's place at the replicas. It remembers which replicas this trainer holds the lease of."""

    def __init__(self, fleet: Fleet, lease: LeaseRequest) -> None:
        self.fleet = fleet
        self._lease = asdict(lease)
        self._joined: set[ControlClient] = set()  # a failure of this trainer concerns these replicas

    def reserve(self, deadline: Deadline) -> None:
        """Take the lease of every replica. Raises ConflictError when another trainer holds one; DeadlineError.

        It precedes calling the workers in: workers in a group that lacks a replica would wait for that replica.
        """

        def reserve(client: ControlClient, seconds: float) -> None:
            client.reserve_lease(self._lease, seconds)
            self._joined.add(client)  # not before: a running update may belong to another trainer

        self.fleet.each("reserve_lease", reserve, deadline)

    def call_workers(
        self,
        init_info: dict[str, Any],
        world_sizes: Sequence[int],
        deadline: Deadline,
        on_failure: OnFailure | None = None,
    ) -> None:
        """Call every replica's workers into the group: the ranks of a replica follow those of the replica before.

        init_info: as vLLM's engines send it. With a `rank_offset` each replica gets the offset of its own first rank.
        world_sizes: workers of each replica. Raises ControlError, DeadlineError.
        """
        offset = init_info.get("rank_offset", 1)
        offsets: dict[ControlClient, int] = {}
        for client, size in zip(self.fleet.clients, world_sizes, strict=True):
            offsets[client] = offset
            offset += size

        def init(client: ControlClient, seconds: float) -> None:
            ranked = self._lease | init_info
            if "rank_offset" in init_info:
                ranked["rank_offset"] = offsets[client]
            client.init_weight_transfer_engine(ranked, seconds)

        self.fleet.each("init_weight_transfer_engine", init, deadline, on_failure=on_failure)

    def abort(self, reason: str, update_id: str) -> list[str]:
        """Abort the update where it runs, and release the replicas. Returns the problems that this met."""

        def abort(client: ControlClient, seconds: float) -> None:
            client.abort_weight_update(reason, seconds, update_id=update_id)

        return self._clean_up("abort_weight_update", abort) + self.leave()

    def leave(self) -> list[str]:
        """Release every replica whose lease this trainer holds. Returns the problems that this met."""

        def shutdown(client: ControlClient, seconds: float) -> None:
            client.shutdown_weight_transfer_engine(seconds)

        problems = self._clean_up("shutdown_weight_transfer_engine", shutdown)
        self._joined.clear()
        return problems

    def _clean_up(self, operation: str, call: ReplicaCall[None]) -> list[str]:
        joined = [client for client in self.fleet.clients if client in self._joined]
        try:
            self.fleet.each(operation, call, Deadline(CLEAN_UP_TIMEOUT_S), clients=joined)
        except SyncError as error:
            return [str(error), *getattr(error, "__notes__", ())]
        return []


@dataclass(frozen=True)
class WorkerCall:
    """Calls the workers of one fleet into a trainer's group: the client that a trainer engine connects through."""

    group: FleetGroup
    world_sizes: tuple[int, ...]
    """Workers of each replica."""
    deadline: Deadline

    @property
    def world_size(self) -> int:
        """Workers of all replicas, without the trainer."""
        return sum(self.world_sizes)

    def init_weight_transfer_engine(self, init_info: dict[str, Any], on_failure: OnFailure | None = None) -> None:
        """See `FleetGroup.call_workers`."""
        self.group.call_workers(init_info, self.world_sizes, self.deadline, on_failure)
