"""One trainer at a time."""

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def module(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("weights.lease")


@pytest.fixture
def conflict(load: Callable[[str], ModuleType]) -> type[Exception]:
    return load("tensors").Conflict


@pytest.fixture
def lease(module: ModuleType) -> Any:
    return module.Lease()


def test_nobody_holds_it_and_anybody_may(lease: Any) -> None:
    assert (lease.is_held, lease.left_s, lease.describe()) == (False, 0, None)
    lease.check_free_for("a")
    lease.require(None)
    lease.require("a")


def test_a_second_trainer_is_refused_and_told_who_and_how_long(lease: Any, conflict: type[Exception]) -> None:
    lease.take("a", 30, is_anonymous=False)
    with pytest.raises(conflict, match="trainer a is connected; its lease runs out in 30 s"):
        lease.check_free_for("b")
    for other in ("b", None):
        with pytest.raises(conflict, match="trainer a is connected"):
            lease.require(other)
    lease.check_free_for("a")
    lease.require("a")


def test_a_client_without_a_name_may_do_what_it_began(lease: Any, conflict: type[Exception]) -> None:
    lease.take("host:1", 60, is_anonymous=True)
    lease.require(None)
    with pytest.raises(conflict):
        lease.require("b")


def test_it_runs_out_and_is_renewed(lease: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    lease.take("a", 10, is_anonymous=False)
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    assert lease.left_s == 0
    lease.check_free_for("b")
    lease.renew()
    assert lease.left_s == 10
    assert lease.generation == 1


def test_what_a_trainer_says_of_itself(module: ModuleType) -> None:
    info = {"master_address": "h", "master_port": 5, "holder": "me", "lease_s": 7}
    assert module.read_holder(info) == ("me", 7.0, False)
    assert info == {"master_address": "h", "master_port": 5}, "vLLM's engines know no leases"
    assert module.read_holder(info) == ("h:5", module.ANONYMOUS_LEASE_S, True)
    legacy = {"host": "0.0.0.0", "port": 5, "client_device_uuid": "12-34"}
    assert module.read_holder(legacy) == ("GPU 12-34", module.ANONYMOUS_LEASE_S, True)


@pytest.mark.parametrize(
    ("field", "value"), [("holder", ""), ("holder", 5), ("lease_s", 0), ("lease_s", "x"), ("lease_s", 1e9)]
)
def test_nonsense_is_named(module: ModuleType, load: Callable[[str], ModuleType], field: str, value: object) -> None:
    with pytest.raises(load("tensors").BadTensor, match=rf"init_info: {field}"):
        module.read_holder({"holder": "me", field: value})
