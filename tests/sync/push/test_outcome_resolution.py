"""Outcome of a commit whose answer was lost."""

from typing import Any

import pytest

from sync import CommitError
from sync.control.client import Call, ControlClient
from sync.control.target import Target
from sync.errors import ConflictError, ControlError, DeadlineError, UnavailableError, UnknownOutcomeError
from sync.push.outcome_resolution import resolve


class Client(ControlClient):
    """A replica that knows what became of update u1; None: it cannot be reached."""

    def __init__(self, name: str, outcome: str | None) -> None:
        super().__init__(Target.parse(f"http://{name}", None))
        self.outcome = outcome
        self.version, self.state = "v1", "serving"
        self.calls: list[str] = []

    def send(self, call: Call) -> dict[str, Any]:
        operation, arguments = call.operation.name, call.arguments
        self.calls.append(operation)
        if self.outcome is None:
            raise UnavailableError(str(self.target), operation, "cannot connect")
        if operation == "status":
            return {"weight_version": self.version, "state": self.state, "last_update": {"outcome": "committed"}}
        if operation not in ("abort_weight_update", "fence"):
            raise ControlError(str(self.target), operation, "not expected here")
        assert "u1" in (arguments.get("update_id"), arguments.get("unless_committed"))
        is_live = self.outcome == "committed"
        if operation == "fence" and not is_live:
            self.state = "fenced"
        return {"outcome": self.outcome, "is_live": is_live, "result": {"paused_s": 1.0}, "state": self.state}

    def close(self) -> None: ...


LOST = DeadlineError("no answer within 1 s")


def test_an_answer_that_was_lost_is_asked_for():
    """A commit that outlives the trainer's deadline was once reported as "live at no replica"."""
    client = Client("one", "committed")
    outcome = resolve({client: LOST}, "u1", "v2")
    outcome.require()
    assert outcome.committed == {client: {"paused_s": 1.0}}


def test_a_single_replica_that_did_not_commit_serves_on():
    client = Client("one", "aborted")
    with pytest.raises(
        CommitError, match="v2 is live at no replica, but failed at http://one:9000: no answer"
    ) as caught:
        resolve({client: LOST}, "u1", "v2").require()
    assert not isinstance(caught.value, UnknownOutcomeError)
    assert client.calls == ["abort_weight_update"]


def test_a_replica_that_cannot_be_asked_is_an_error_of_its_own():
    gone = Client("two", None)
    with pytest.raises(UnknownOutcomeError, match="not known whether it is live at http://two:9000") as caught:
        resolve({Client("one", "committed"): {"paused_s": 0.0}, gone: LOST}, "u1", "v2").require()
    assert caught.value.committed == ("http://one:9000",)
    assert list(caught.value.unknown) == ["http://two:9000"]
    assert not caught.value.failed
    assert "could not be fenced" in caught.value.__notes__[0]


def test_the_rest_is_fenced_where_some_have_committed():
    one, two, three = Client("one", "committed"), Client("two", "failed"), Client("three", "committed")
    refused = ConflictError("http://two:9000", "finish_weight_update", "not now")
    with pytest.raises(CommitError) as caught:
        resolve({one: {}, two: refused, three: LOST}, "u1", "v2").require()
    assert set(caught.value.committed) == {"http://one:9000", "http://three:9000"}
    assert list(caught.value.failed) == ["http://two:9000"]
    assert (one.state, two.state, three.state) == ("serving", "fenced", "serving")
