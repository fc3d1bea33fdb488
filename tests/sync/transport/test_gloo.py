"""The gloo group and its rendezvous over links."""

import threading
from datetime import timedelta

import psutil
import pytest
import torch

from sync import TransferError
from sync.transport.descriptors import gloo_descriptors
from sync.transport.gloo import GlooGroup, Membership
from sync.transport.relay_store import RelayStore

SECRET = "ab" * 32


class Switchboard:
    """Forwards each set value to all members' stores, like the trainer and its links."""

    def __init__(self, world_size: int, timeout_s: float = 20) -> None:
        self._changed = threading.Condition()
        self.stores = [RelayStore(self._send, self._receive, timeout_s) for _ in range(world_size)]

    def _send(self, key: str, value: str) -> None:
        with self._changed:
            for store in self.stores:
                store._values[key] = bytes.fromhex(value)
            self._changed.notify_all()

    def _receive(self) -> None:
        with self._changed:
            self._changed.wait(0.05)


def form(world_size: int, num_devices: int) -> list[GlooGroup]:
    board = Switchboard(world_size)
    groups: dict[int, GlooGroup] = {}

    def join(rank: int) -> None:
        own = Membership("127.0.0.1", 0, rank, world_size, SECRET, 20.0, num_devices)
        groups[rank] = GlooGroup(board.stores[rank], own, "127.0.0.1", lambda: None)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [groups[rank] for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_what_the_trainer_broadcasts_all_workers_get(world_size):
    groups = form(world_size, 2)
    for number in range(6):  # each device more than once
        data = [torch.full((1000,), number + 1 if rank == 0 else 0, dtype=torch.uint8) for rank in range(world_size)]
        for group, work in [(group, group.broadcast(each)) for group, each in zip(groups, data, strict=True)]:
            group.wait(work)
        assert all(torch.equal(each, data[0]) for each in data)
    for group in groups:
        group.close()
        with pytest.raises(TransferError, match="the group was closed"):
            group.broadcast(torch.zeros(1))


OF_OTHERS = 2
"""Descriptors that something else in this process may open meanwhile."""


@pytest.mark.parametrize(("world_size", "num_devices"), [(2, 1), (4, 1), (8, 1), (2, 4), (8, 4)])
def test_a_member_needs_as_many_descriptors_as_computed(world_size, num_devices):
    before = psutil.Process().num_fds()
    groups = form(world_size, num_devices)
    opened = psutil.Process().num_fds() - before
    assert opened <= world_size * gloo_descriptors(world_size, num_devices) + OF_OTHERS
    for group in groups:
        group.close()


@pytest.mark.fault
def test_members_that_do_not_come_are_not_waited_for_in_vain():
    store = RelayStore(lambda key, value: None, lambda: None, 60)
    own = Membership("127.0.0.1", 0, 0, 2, SECRET, 0.3)
    with pytest.raises(TransferError, match="did not meet in time"):
        GlooGroup(store, own, "127.0.0.1", lambda: None)


@pytest.mark.fault
def test_what_ends_the_rendezvous_gets_through_gloo():
    """A member that is gone, say."""

    def receive() -> None:
        raise TransferError("worker 1 is gone")

    store = RelayStore(lambda key, value: None, receive, 60)
    own = Membership("127.0.0.1", 0, 0, 2, SECRET, 20)
    with pytest.raises(TransferError, match="worker 1 is gone"):
        GlooGroup(store, own, "127.0.0.1", lambda: None)


@pytest.mark.fault
def test_a_member_that_is_gone_ends_a_wait():
    groups = form(2, 1)
    gone = threading.Event()

    def check() -> None:
        if gone.is_set():
            raise TransferError("worker 1 is gone")

    groups[1]._check = check
    timer = threading.Timer(0.3, gone.set)
    timer.start()
    with pytest.raises(TransferError, match="worker 1 is gone"):
        groups[1].wait(groups[1].broadcast(torch.zeros(8, dtype=torch.uint8)))
    for group in groups:
        group.close()
    timer.join()


def test_a_store_waits_no_longer_than_asked():
    store = RelayStore(lambda key, value: None, lambda: None, 0.1)
    store.set("a", b"1")
    assert store.get("a") == b"1"
    for timeout in (None, timedelta(seconds=0.05)):
        with pytest.raises(TransferError, match="missing: b"):
            store.wait(["a", "b"], timeout)


def test_a_secret_is_not_in_what_is_printed():
    assert SECRET not in repr(Membership("127.0.0.1", 1, 0, 2, SECRET, 1.0))
