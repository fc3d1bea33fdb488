import threading
import time

import pytest

from sync.errors import DeadlineError
from sync.push.heartbeat import Heartbeat

LEASE_S = 1.5


class Client:
    """Answers at once, or, when dead, never."""

    def __init__(self, is_dead: bool = False) -> None:
        self.is_dead = is_dead
        self.renewed_at: list[float] = []
        self.under_way = 0
        self.most_under_way = 0

    def renew_lease(self, timeout: float | None = None) -> None:
        assert timeout is not None
        self.renewed_at.append(time.monotonic())
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self.is_dead:
            time.sleep(timeout)
        self.under_way -= 1
        if self.is_dead:
            raise DeadlineError("no answer")

    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.renewed_at, self.renewed_at[1:], strict=False)]


def beating() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lease-heartbeat"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    ends = time.monotonic() + LEASE_S
    while beating() and time.monotonic() < ends:
        time.sleep(0.01)
    assert not beating()


def test_dead_replicas_do_not_delay_the_renewals_of_healthy_ones():
    clients = [Client(), Client(is_dead=True), Client(is_dead=True), Client(is_dead=True), Client()]
    began = time.monotonic()
    heartbeat = Heartbeat(clients, LEASE_S)
    time.sleep(4 * LEASE_S)
    heartbeat.stop()
    for healthy in (clients[0], clients[-1]):
        assert healthy.renewed_at[0] - began <= LEASE_S / 2
        assert len(healthy.gaps()) >= 9
        assert max(healthy.gaps()) <= LEASE_S / 2


def test_a_dead_replica_has_one_renewal_under_way_and_is_tried_again():
    dead = Client(is_dead=True)
    heartbeat = Heartbeat([dead], LEASE_S)
    time.sleep(3 * LEASE_S)
    assert len(beating()) == 1
    heartbeat.stop()
    assert dead.most_under_way == 1
    assert len(dead.renewed_at) >= 5


def test_stop_returns_at_once_and_nothing_is_renewed_after_it():
    dead, healthy = Client(is_dead=True), Client()
    heartbeat = Heartbeat([dead, healthy], LEASE_S)
    time.sleep(LEASE_S / 2)  # the dead one's first renewal is under way
    began = time.monotonic()
    heartbeat.stop()
    assert time.monotonic() - began < LEASE_S / 6, "half of what the renewal takes"
    renewals = len(dead.renewed_at), len(healthy.renewed_at)
    time.sleep(LEASE_S)
    assert (len(dead.renewed_at), len(healthy.renewed_at)) == renewals


def test_a_client_closed_after_stop_is_no_error(monkeypatch):
    """`WeightSync.close` stops the heartbeat and closes the clients; a renewal may be about to begin."""
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    client = Client()
    heartbeat = Heartbeat([client], LEASE_S)
    monkeypatch.setattr(client, "renew_lease", lambda timeout: (heartbeat.stop(), closed())[0])

    def closed() -> None:
        raise RuntimeError("Cannot send a request, as the client has been closed.")

    time.sleep(LEASE_S)
    assert raised == []
    assert not beating()
