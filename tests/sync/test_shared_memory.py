"""When bytes go through shared memory, and that they arrive either way (test_gloo_faults.py has what goes wrong)."""

import os
import socket
import threading
import time
from typing import Any

import pytest
import torch

from sync import TransferError, WeightSync
from sync.links import Link
from sync.ring import SLOT_BYTES
from tests.sync.replica import Replica
from tests.sync.stand_in import KEY

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
WAYS = pytest.mark.parametrize(("is_wanted", "transport"), [(True, "shared memory"), (False, "gloo")])


def sync_with(replica: Replica, **options: Any) -> WeightSync:
    return WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=20, **options)


def zeros(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor * 0 for name, tensor in weights.items()}


@WAYS
@pytest.mark.parametrize("world_size", [1, 3])
def test_what_is_pushed_arrives(weights, is_wanted, transport, world_size):
    """Tensors larger than a slot, of exactly one, of one byte more, and many small ones; several times."""
    sizes = {"large": 3 * SLOT_BYTES // 4 + 5, "one": SLOT_BYTES // 4, "more": SLOT_BYTES // 4 + 1}
    weights |= {name: torch.randn(size) for name, size in sizes.items()}
    weights |= {f"small.{number}": torch.randn(300) for number in range(100)}
    with Replica(zeros(weights), world_size=world_size) as replica:
        with sync_with(replica, shared_memory=is_wanted) as sync:
            for number in range(3):
                pushed = {name: tensor + number for name, tensor in weights.items()}
                report = sync.push(pushed)
                assert report.transport == transport
                assert f"MB by {transport} in" in str(report)
                for name, tensor in pushed.items():
                    assert torch.equal(replica.tensors[name], tensor), name
        assert replica.calls.count("init_weight_transfer_engine") == 1


class Elsewhere(Replica):
    """Its first workers are on another machine: the trainer's socket is not there."""

    num_elsewhere = 1

    def memory_address(self, info: dict[str, Any], worker: int) -> str:
        return "nobody-listens-here" if worker < self.num_elsewhere else info["memory_address"]


@pytest.mark.parametrize("num_elsewhere", [1, 2])
def test_bytes_are_broadcast_when_a_worker_is_elsewhere(weights, num_elsewhere):
    with Elsewhere(zeros(weights), world_size=2) as replica:
        replica.num_elsewhere = num_elsewhere
        with sync_with(replica) as sync:
            assert sync.push(weights).transport == "gloo"
            assert sync.push(weights).transport == "gloo"
        assert all(torch.equal(replica.tensors[name], tensor) for name, tensor in weights.items())


class Besieged(Replica):
    """Others find the trainer's socket before its workers do."""

    def __init__(self, *args: Any, greetings: list[bytes], **options: Any) -> None:
        super().__init__(*args, **options)
        self.greetings = greetings
        self.strangers: list[socket.socket] = []

    def init_weight_transfer_engine(self, body: dict[str, Any]) -> dict[str, Any]:
        for greeting in self.greetings:
            stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stranger.connect("\0" + body["init_info"]["memory_address"])
            stranger.sendall(greeting)
            self.strangers.append(stranger)
        return super().init_weight_transfer_engine(body)


@pytest.mark.fault
@pytest.mark.row(20)
def test_strangers_at_the_socket_get_nothing(weights):
    greetings = [b"", b"short", b"0" * 36, b"1" * 10_000]
    with Besieged(zeros(weights), greetings=greetings) as replica:
        with sync_with(replica) as sync:
            assert sync.push(weights).transport == "shared memory"
        assert all(torch.equal(replica.tensors[name], tensor) for name, tensor in weights.items())
        for stranger in replica.strangers:
            stranger.settimeout(5)
            try:
                data, descriptors, _, _ = socket.recv_fds(stranger, 1, 1)
                assert (data, descriptors) == (b"", [])
            except ConnectionResetError:
                pass  # closed with bytes unread
            stranger.close()


@pytest.mark.fault
def test_a_crowd_of_silent_strangers_costs_seconds_at_most(weights):
    with Besieged(zeros(weights), greetings=[b""] * 40) as replica:
        with sync_with(replica) as sync:
            assert sync.push(weights).transport == "gloo"
            assert sync.push(weights).version == "v2"
        for stranger in replica.strangers:
            stranger.close()


class Group:
    """What a link asks of its group."""

    stall_timeout_s = 0.6

    def __init__(self) -> None:
        self.is_closed = False

    def check_peer(self) -> None:
        if self.is_closed:
            raise TransferError("gloo: the group was closed")


@pytest.fixture
def group():
    return Group()


@pytest.fixture
def pair(group):
    ends = socket.socketpair()
    links = [Link(end, group, peer) for end, peer in zip(ends, ("worker 1", "the trainer"), strict=True)]
    yield links
    for link in links:
        link.close()


def test_a_peer_that_does_nothing(pair):
    pair[1].tell()
    pair[0].wait_for(1)
    began = time.monotonic()
    with pytest.raises(TransferError, match=r"worker 1 did nothing for 0\.6 s"):
        pair[0].wait_for(2)
    assert time.monotonic() - began > 0.5


def test_a_peer_that_reads_nothing(pair):
    def tell_for_ever() -> None:
        while True:
            pair[0].tell()

    with pytest.raises(TransferError, match="did nothing"):
        tell_for_ever()


def test_a_group_that_is_closed_meanwhile(pair, group):
    group.stall_timeout_s = 60
    timer = threading.Timer(0.3, setattr, (group, "is_closed", True))
    timer.start()
    with pytest.raises(TransferError, match="the group was closed"):
        pair[0].wait_for(1)
    timer.join()


@pytest.mark.parametrize("is_own", [True, False])
def test_an_end_that_is_closed_wakes_who_waits(pair, group, is_own):
    group.stall_timeout_s = 60
    timer = threading.Timer(0.1, pair[0 if is_own else 1].close)
    timer.start()
    with pytest.raises(TransferError, match="worker 1 is gone"):
        pair[0].wait_for(1)
    timer.join()
    with pytest.raises(TransferError, match="worker 1 is gone"):
        pair[0].tell()
