import logging
import socket
import time

import pytest

from sync import ConflictError, ControlError, DeadlineError, InvalidError, RefusedError, UnavailableError
from sync.control.connect import connect
from sync.control.target import Target
from tests.sync.replica import Replica
from tests.sync.stand_in import KEY


@pytest.fixture
def replica(weights):
    with Replica(weights) as running:
        yield running


def client(address: str, key: str | None = KEY):
    return connect(Target.parse(address, key), timeout=5)


def test_every_call_reaches_its_route(replica, weights):
    with client(replica.address) as control:
        assert control.status()["state"] == "serving"
        assert control.weight_version() == "default"
        assert {parameter["name"] for parameter in control.parameters()["parameters"]} == set(weights)
        control.start_weight_update()
        control.finish_weight_update("v1")
        control.abort_weight_update("test")
        control.shutdown_weight_transfer_engine()
    assert replica.calls == [
        "replica_status",
        "weight_info",
        "weight_parameters",
        "start_weight_update",
        "finish_weight_update",
        "abort_weight_update",
        "shutdown_weight_transfer_engine",
    ]


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_the_key(replica, key):
    with client(replica.address, key) as control, pytest.raises(RefusedError, match="no control key"):
        control.start_weight_update()
    assert replica.state == "serving"


def test_a_key_in_the_address(replica):
    with client(replica.address.replace("http://", f"http://trainer:{KEY}@"), None) as control:
        assert control.status()["state"] == "serving"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidError),
        (401, RefusedError),
        (403, RefusedError),
        (404, InvalidError),
        (409, ConflictError),
        (422, InvalidError),
        (500, ControlError),
        (503, UnavailableError),
    ],
)
def test_errors_have_types(replica, status, kind):
    replica.fail["start_weight_update"] = (status, "because")
    with client(replica.address) as control, pytest.raises(ControlError, match="because") as caught:
        control.start_weight_update()
    assert type(caught.value) is kind
    assert caught.value.operation == "start_weight_update"
    assert caught.value.target == replica.address


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with client(address) as control, pytest.raises(UnavailableError, match="cannot connect"):
        control.status()


def test_a_server_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with client(f"http://127.0.0.1:{silent.getsockname()[1]}") as control, pytest.raises(DeadlineError):
            control.status(timeout=0.3)
        assert time.monotonic() - began < 3


def test_the_key_is_nowhere_to_be_read(replica, caplog):
    caplog.set_level(logging.DEBUG)
    replica.fail["start_weight_update"] = (409, "because")
    with client(replica.address.replace("http://", f"http://trainer:{KEY}@")) as control:
        control.status()
        with pytest.raises(ConflictError) as caught:
            control.start_weight_update()
        shown = repr(control) + str(control.target) + repr(control.target) + repr(caught.value)
    assert KEY not in shown
    assert KEY not in caplog.text


def test_a_front_end_over_several_replicas_names_them(replica, monkeypatch):
    answer = {"weight_version": "v1", "replicas": [{"url": "a:8001"}, {"url": "b:8001"}]}
    monkeypatch.setattr(replica, "replica_status", lambda body: answer)
    with client(replica.address) as control, pytest.raises(InvalidError) as caught:
        control.status()
    assert 'WeightSync(["grpc://a:8001", "grpc://b:8001"])' in str(caught.value)
