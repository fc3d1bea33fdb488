"""One trainer at a time."""

import time

import pytest

from tritonlive.backend.tensors import BadTensor, Conflict
from tritonlive.backend.weights.lease import ANONYMOUS_LEASE_S, Lease, read_holder


@pytest.fixture
def lease() -> Lease:
    return Lease()


def test_a_free_lease_allows_every_trainer(lease: Lease) -> None:
    assert (lease.is_held, lease.left_s, lease.describe()) == (False, 0, None)
    lease.check_free_for("a")
    lease.require(None)
    lease.require("a")


def test_a_second_trainer_is_refused_and_told_who_and_how_long(lease: Lease) -> None:
    lease.take("a", 30, is_anonymous=False)
    with pytest.raises(Conflict, match="trainer a is connected; its lease runs out in 30 s"):
        lease.check_free_for("b")
    for other in ("b", None):
        with pytest.raises(Conflict, match="trainer a is connected"):
            lease.require(other)
    lease.check_free_for("a")
    lease.require("a")


def test_a_client_without_a_name_may_do_what_it_began(lease: Lease) -> None:
    lease.take("host:1", 60, is_anonymous=True)
    lease.require(None)
    with pytest.raises(Conflict):
        lease.require("b")


def test_it_runs_out_and_is_renewed(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    lease.take("a", 10, is_anonymous=False)
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    assert lease.left_s == 0
    lease.check_free_for("b")
    lease.renew()
    assert lease.left_s == 10
    assert lease.generation == 1


def test_what_a_trainer_says_of_itself() -> None:
    info = {"master_address": "h", "master_port": 5, "holder": "me", "lease_s": 7}
    assert read_holder(info) == ("me", 7.0, False)
    assert info == {"master_address": "h", "master_port": 5}, "vLLM's engines know no leases"
    assert read_holder(info) == ("h:5", ANONYMOUS_LEASE_S, True)
    legacy = {"host": "0.0.0.0", "port": 5, "client_device_uuid": "12-34"}
    assert read_holder(legacy) == ("GPU 12-34", ANONYMOUS_LEASE_S, True)


@pytest.mark.parametrize(
    ("field", "value"), [("holder", ""), ("holder", 5), ("lease_s", 0), ("lease_s", "x"), ("lease_s", 1e9)]
)
def test_nonsense_is_named(field: str, value: object) -> None:
    with pytest.raises(BadTensor, match=rf"init_info: {field}"):
        read_holder({"holder": "me", field: value})
