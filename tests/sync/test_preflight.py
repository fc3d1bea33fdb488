"""What stands against a push is said all at once, before a byte moves."""

import socket

import pytest
import torch

from sync import CheckError, WeightSync
from tests.sync.replica import Replica
from tests.sync.stand_in import KEY


@pytest.fixture
def replicas(weights):
    with Replica(weights) as one, Replica(weights) as two:
        yield one, two


def check(replicas, weights, **options) -> list[str]:
    """The mismatches, each replica's address cut down to its number."""
    with WeightSync([each.address for each in replicas], control_key=KEY, **options) as sync:
        try:
            sync.check(weights)
        except CheckError as error:
            lines = list(error.mismatches)
            for number, each in enumerate(replicas):
                lines = [line.replace(each.address, f"<{number}>") for line in lines]
            return lines
    return []


def test_what_fits_everywhere(replicas, weights):
    assert check(replicas, weights, backend="gloo") == []
    assert all("init_weight_transfer_engine" not in each.calls for each in replicas)


def test_everything_is_said_at_once(replicas, weights):
    one, two = replicas
    one.status = {"host_memory_available": 100, "lease": {"holder": "another"}}
    one.state = "updating"
    two.backend = "nccl"
    two.tensors["more"] = torch.zeros(2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = check(replicas, weights, backend="gloo", master_port=port)
    assert [line.partition(";")[0] for line in found] == [
        "<0>: the replica is updating: another is pushing",
        "<0>: host memory: 1 workers stage 0.0 GB, 0.0 GB are available there",
        "<1>: weight transfer is nccl there",
        "<1>: more: missing, served is float32[2]",
        f"cannot listen on master_address 127.0.0.1, master_port {port}: Address already in use",
    ]


def test_replicas_of_different_checkpoints(replicas, weights):
    replicas[1].tensors["model.layers.0.bias"] = torch.zeros(16).half()
    assert check(replicas, weights, backend="gloo") == ["<1> serves another checkpoint than <0>"]


def test_an_address_that_is_not_ours(replicas, weights):
    (found,) = check(replicas, weights, backend="gloo", master_address="192.0.2.1")
    assert "master_address 192.0.2.1" in found


def test_ipc_is_for_one_worker(weights):
    with Replica(weights, world_size=2) as replica:
        replica.backend = "cuda_ipc"
        assert check([replica], weights, backend="ipc") == [
            "world size is 2; with backend='ipc' it must be 1, the worker on the trainer's GPU"
        ]


def test_a_restarting_replica(replicas, weights):
    replicas[0].state = "restarting"
    replicas[0].status = {"reason": "the engine died"}
    found = check(replicas, weights, backend="gloo")
    assert found == ["<0>: the replica is restarting: the engine died"]
