"""All reasons against a push are reported together, before the first byte moves."""

import socket
from dataclasses import replace

import pytest
import torch

from sync import CheckError, WeightSync
from sync.push.preflight import ReplicaInfo, TrainerInfo, require_alike, require_all
from sync.weights.check import ServedModel
from sync.weights.open_source import open_source
from sync.weights.weight_source import ParamMeta, WeightSource
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
        "<1>: weight transfer is nccl there",
        "<1>: more: missing, served is float32[2]",
        "<0>: host memory: current, previous and staged weights of 0.0 GB in each of 1 workers take 0.0 GB, 0.0 GB are "
        "available there",
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
        world_size, no_gpu = check([replica], weights, backend="ipc")
    assert world_size == "world size is 2; with backend='ipc' it must be 1, the worker on the trainer's GPU"
    assert no_gpu.startswith("backend 'ipc' sends from a GPU, and this process has none")


def test_a_restarting_replica(replicas, weights):
    replicas[0].state = "restarting"
    replicas[0].status = {"reason": "the engine died"}
    found = check(replicas, weights, backend="gloo")
    assert found == ["<0>: the replica is restarting: the engine died"]


class Counted(WeightSource):
    """Counts how often it is asked for metadata, and refuses to be read."""

    def __init__(self, weights) -> None:
        self._metas = [ParamMeta.of(name, tensor) for name, tensor in weights.items()]
        self.asked = 0

    def metadata(self):
        self.asked += 1
        return self._metas

    def __iter__(self):
        raise AssertionError("the check read weights")


def served(weights) -> ServedModel:
    return ServedModel("replica", {name: ParamMeta.of(name, tensor) for name, tensor in weights.items()})


def test_replicas_of_one_checkpoint_are_compared_once(weights):
    replicas = [
        ReplicaInfo(f"r{i}", {"state": "serving", "weight_transfer_backend": "gloo"}, served(weights)) for i in range(4)
    ]
    source = Counted(weights)
    require_alike(replicas, source)
    asked = source.asked
    require_all(replicas, source, TrainerInfo("t", "gloo", "127.0.0.1", 0), is_connected=True)
    assert source.asked == 2 * asked


def test_a_subset_is_compared_as_one(weights):
    replicas = [ReplicaInfo("r", {"state": "serving", "weight_transfer_backend": "gloo"}, served(weights))]
    part = open_source({"model.layers.0.bias": weights["model.layers.0.bias"]})
    assert require_alike(replicas, part, partial=True).is_partial
    require_all(replicas, part, TrainerInfo("t", "gloo", "127.0.0.1", 0), is_connected=True, partial=True)
    with pytest.raises(CheckError, match="missing"):
        require_alike(replicas, part)


GB = 1_000_000_000


@pytest.mark.parametrize(
    ("transport", "keep_previous", "needed"),
    [("shared", True, 3), ("shared", False, 1), ("broadcast", True, 24), ("broadcast", False, 8)],
)
def test_host_memory_is_counted_as_it_will_be_used(transport, keep_previous, needed):
    """Memory for 70 B parameters in 8 workers: one copy is 141 GB."""
    for available, is_short in ((needed * 141 * GB, False), (needed * 141 * GB - 1, True)):
        replica = ReplicaInfo("r", {"world_size": 8, "host_memory_available": available})
        short = replica.shortage(141 * GB, transport, keep_previous=keep_previous)
        assert (short is not None) == is_short
    assert f"take {needed * 141}.0 GB" in str(short)
    assert ("keep_previous=False needs a third" in str(short)) == keep_previous


def test_what_a_replica_holds_already_is_used_again():
    status = {"world_size": 8, "host_memory_available": 100 * GB, "host_memory_held": 282 * GB}
    assert ReplicaInfo("r", status).shortage(127 * GB, "shared", keep_previous=True) is None
    assert ReplicaInfo("r", status).shortage(128 * GB, "shared", keep_previous=True) is not None
    assert ReplicaInfo("r", {"world_size": 8}).shortage(128 * GB, "shared", keep_previous=True) is None


def test_replicas_of_one_machine_share_its_memory(weights):
    def replica(number: int, machine: str, available: int) -> ReplicaInfo:
        status = {
            "state": "serving",
            "world_size": 2,
            "weight_transfer_backend": "gloo",
            "machine": machine,
            "host_memory_available": available,
        }
        return ReplicaInfo(f"r{number}", status, served(weights))

    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    near = TrainerInfo("t", "gloo", "127.0.0.1", 0, machine="here")

    def problems(replicas, trainer) -> tuple[str, ...]:
        with pytest.raises(CheckError) as caught:
            require_all(replicas, open_source(weights), trainer, is_connected=False)
        return caught.value.mismatches

    both = [replica(0, "here", 3 * num_bytes), replica(1, "here", 3 * num_bytes)]
    require_all(both, open_source(weights), near, is_connected=False)
    (line,) = problems(both, replace(near, shared_memory=False))
    assert line.startswith("r0, r1: host memory: current, previous and staged weights of 0.0 GB in each of 4 workers")
    (line,) = problems(both, replace(near, machine="elsewhere"))
    assert "in each of 4 workers" in line
    apart = [replica(0, "here", 6 * num_bytes), replica(1, "there", 6 * num_bytes - 1)]
    (line,) = problems(apart, near)
    assert line.startswith("r1: host memory")
    require_all(apart, open_source(weights), replace(near, keep_previous=False), is_connected=False)
