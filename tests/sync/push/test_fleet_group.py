"""A trainer's place at its replicas: leases, ranks, and whom a failure concerns."""

import pytest

from sync.deadline import Deadline
from sync.errors import ConflictError, UnavailableError
from sync.push.fleet_group import FleetGroup, LeaseRequest, WorkerCall
from tests.sync.fleet_clients import ScriptedClient, fleet_of

A, B = "http://a:9000", "http://b:9000"
LEASE = LeaseRequest("me", 30.0, 60.0)


@pytest.fixture
def clients() -> tuple[ScriptedClient, ScriptedClient]:
    return ScriptedClient("a"), ScriptedClient("b")


@pytest.fixture
def group(clients) -> FleetGroup:
    return FleetGroup(fleet_of(*clients), LEASE)


def test_the_ranks_of_a_replica_follow_those_of_the_one_before(clients, group):
    workers = WorkerCall(group, (2, 3), Deadline(5))
    workers.init_weight_transfer_engine({"rank_offset": 1, "world_size": 6})
    assert workers.world_size == 5
    lease = {"holder": "me", "lease_s": 30.0, "timeout_s": 60.0}
    for client, offset in zip(clients, (1, 3), strict=True):
        info = client.arguments("init_weight_transfer_engine")["init_info"]
        assert info == lease | {"world_size": 6, "rank_offset": offset}


def test_without_an_offset_every_replica_gets_the_same(clients, group):
    WorkerCall(group, (1, 1), Deadline(5)).init_weight_transfer_engine({"packed": True})
    for client in clients:
        assert "rank_offset" not in client.arguments("init_weight_transfer_engine")["init_info"]


def test_a_replica_that_gave_no_lease_is_not_aborted(clients, group):
    one, two = clients
    two.answers["reserve_lease"] = ConflictError(B, "reserve_lease", "another trainer is connected")
    with pytest.raises(ConflictError, match="another trainer"):
        group.reserve(Deadline(5))
    assert group.abort("no lease", "update-1") == []
    assert one.operations == ["reserve_lease", "abort_weight_update", "shutdown_weight_transfer_engine"]
    assert one.arguments("abort_weight_update") | {"force": None} == {
        "reason": "no lease",
        "update_id": "update-1",
        "force": None,
    }
    assert two.operations == ["reserve_lease"]


def test_problems_of_the_clean_up_are_returned(clients, group):
    one, two = clients
    group.reserve(Deadline(5))
    one.answers["abort_weight_update"] = UnavailableError(A, "abort_weight_update", "gone")
    two.answers["shutdown_weight_transfer_engine"] = UnavailableError(B, "shutdown_weight_transfer_engine", "gone")
    assert group.abort("why", "update-1") == [
        f"{A}: abort_weight_update: gone",
        f"{B}: shutdown_weight_transfer_engine: gone",
    ]


def test_a_group_is_left_once(clients, group):
    group.reserve(Deadline(5))
    assert group.leave() == []
    assert group.leave() == []
    assert [client.operations.count("shutdown_weight_transfer_engine") for client in clients] == [1, 1]
