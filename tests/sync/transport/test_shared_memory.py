"""When bytes go through shared memory, and that they arrive by either transport."""

import os
from typing import Any

import pytest
import torch

from sync import WeightSync
from sync.transport.frames import FRAME_BYTES
from tests.sync.replica import Replica
from tests.sync.stand_in import KEY

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
WAYS = pytest.mark.parametrize(("is_wanted", "transport"), [(True, "shared memory"), (False, "gloo")])


def client_for(replica: Replica, **options: Any) -> WeightSync:
    return WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20, **options)


def zeros(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor * 0 for name, tensor in weights.items()}


@WAYS
@pytest.mark.parametrize("world_size", [1, 3])
def test_what_is_pushed_arrives(weights, is_wanted, transport, world_size):
    """Tensors larger than a frame, of exactly one, of one element more, and many small ones; several times."""
    sizes = {"large": 3 * FRAME_BYTES // 4 + 5, "one": FRAME_BYTES // 4, "more": FRAME_BYTES // 4 + 1}
    weights |= {name: torch.randn(size) for name, size in sizes.items()}
    weights |= {f"small.{number}": torch.randn(300) for number in range(100)}
    with Replica(zeros(weights), world_size=world_size) as replica:
        with client_for(replica, shared_memory=is_wanted) as client:
            for number in range(3):
                pushed = {name: tensor + number for name, tensor in weights.items()}
                report = client.push(pushed)
                assert report.transport == transport
                assert f"MB by {transport} in" in str(report)
                for name, tensor in pushed.items():
                    assert torch.equal(replica.tensors[name], tensor), name
        assert replica.calls.count("init_weight_transfer_engine") == 1


class Elsewhere(Replica):
    """Its first workers are on another machine, where the trainer's Unix socket is not."""

    num_elsewhere = 1

    def local_address(self, info: dict[str, Any], worker: int) -> str:
        return "nobody-listens-here" if worker < self.num_elsewhere else info["local_address"]


@pytest.mark.parametrize("num_elsewhere", [1, 2])
def test_bytes_are_broadcast_when_a_worker_is_elsewhere(weights, num_elsewhere):
    with Elsewhere(zeros(weights), world_size=2) as replica:
        replica.num_elsewhere = num_elsewhere
        with client_for(replica) as client:
            assert client.push(weights).transport == "gloo"
            assert client.push(weights).transport == "gloo"
        assert all(torch.equal(replica.tensors[name], tensor) for name, tensor in weights.items())
