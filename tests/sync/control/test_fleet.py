"""One call to all replicas at once: order, the first failure, the deadline."""

import threading
import time

import pytest

from sync.control.client import ControlClient
from sync.deadline import Deadline
from sync.errors import ConflictError, DeadlineError
from tests.sync.fleet_clients import ScriptedClient, fleet_of

A, B, C = "http://a:9000", "http://b:9000", "http://c:9000"


def test_results_are_in_the_replicas_order():
    fleet = fleet_of(*(ScriptedClient(name) for name in "abc"))

    def call(client: ControlClient, seconds: float) -> str:
        time.sleep(0.05 if str(client.target) == A else 0)
        assert 0 < seconds <= 5
        return str(client.target)

    assert fleet.targets == (A, B, C)
    assert fleet.each("status", call, Deadline(5)) == [A, B, C]


def test_calls_run_at_the_same_time():
    barrier = threading.Barrier(3, timeout=5)
    fleet = fleet_of(*(ScriptedClient(name) for name in "abc"))
    fleet.each("status", lambda client, seconds: barrier.wait(), Deadline(5))


def test_the_first_failure_in_order_is_raised_when_all_have_ended_and_has_the_others_as_notes():
    ended: list[str] = []

    def call(client: ControlClient, seconds: float) -> None:
        target = str(client.target)
        time.sleep({A: 0.1, B: 0.05, C: 0}[target])
        ended.append(target)
        if target != C:
            raise ConflictError(target, "status", "not now")

    with pytest.raises(ConflictError, match=f"{A}: status: not now") as caught:
        fleet_of(*(ScriptedClient(name) for name in "abc")).each("status", call, Deadline(5))
    assert caught.value.__notes__ == [f"{B}: status: not now"]
    assert sorted(ended) == [A, B, C]


def test_attempt_returns_results_and_errors_by_client():
    clients = [ScriptedClient("a", status={"state": "serving"}), ScriptedClient("b", status=ConflictError(B, "x", "y"))]
    results = fleet_of(*clients).attempt("status", lambda client, seconds: client.status(seconds), Deadline(5))
    assert results[clients[0]] == {"state": "serving"}
    assert isinstance(results[clients[1]], ConflictError)


def test_only_the_chosen_clients_are_called():
    one, two = ScriptedClient("a"), ScriptedClient("b")
    fleet_of(one, two).each("status", lambda client, seconds: client.status(seconds), Deadline(5), clients=[two])
    assert (one.operations, two.operations) == ([], ["status"])


def test_a_failure_is_reported_before_the_others_have_answered():
    reported = threading.Event()

    def call(client: ControlClient, seconds: float) -> None:
        if str(client.target) == B:
            raise ConflictError(B, "update_weights", "not now")
        assert reported.wait(5)  # a has not answered yet

    with pytest.raises(ConflictError):
        fleet_of(ScriptedClient("a"), ScriptedClient("b")).each(
            "update_weights", call, Deadline(5), on_failure=lambda error: reported.set()
        )


def test_a_replica_that_does_not_answer_is_waited_for_until_the_deadline():
    released = threading.Event()
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=rf"{A}: status: not done within 0\.2 s"):
        fleet_of(ScriptedClient("a")).each("status", lambda client, seconds: released.wait(5), Deadline(0.2))
    assert time.monotonic() - began < 2
    released.set()


def test_no_call_is_made_when_no_time_is_left():
    client = ScriptedClient("a")
    with pytest.raises(DeadlineError):
        fleet_of(client).each("status", lambda each, seconds: each.status(seconds), Deadline(-1))
    assert client.operations == []
