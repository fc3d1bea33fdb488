"""Going back: which version all replicas can load, and when none may change."""

from collections.abc import Sequence
from typing import Any

import pytest

from sync.deadline import Deadline
from sync.errors import CommitError, ConflictError
from sync.push.rollback import reload_checkpoint, roll_back
from tests.sync.fleet_clients import ScriptedClient, fleet_of

A, B = "http://a:9000", "http://b:9000"


def replica(name: str, version: str, kept: Sequence[tuple[str, str | None]], state: str = "serving", **more) -> Any:
    entries = [{"weight_version": label, "digest": digest} for label, digest in kept]
    status = {"state": state, "weight_version": version, "kept_versions": entries, "lease": None}
    answers = {
        "rollback": lambda arguments: {"weight_version": arguments["to"]},
        "reload": {"weight_version": "default"},
        "abort_weight_update": {"is_live": False, "result": None},
        "fence": {"is_live": False},
    }
    return ScriptedClient(name, **answers | {"status": status | more.pop("status", {})} | more)


def back(*clients: ScriptedClient, to: str | None = None) -> str:
    return roll_back(fleet_of(*clients), "me", to, "keep", Deadline(5))


@pytest.mark.parametrize(
    ("versions", "states", "expected"),
    [
        (("v2", "v2"), ("serving", "serving"), "v1"),  # all serve v2: the one before
        (
            ("v2", "v1"),
            ("serving", "serving"),
            "v2",
        ),  # a push that failed at some replicas: the served version is the newest
        (("v2", "v2"), ("serving", "fenced"), "v2"),  # one does not serve what it holds
    ],
)
def test_the_default_is_the_newest_version_that_all_hold_and_not_all_serve(versions, states, expected):
    kept = [("v0", "a"), ("v1", "b"), ("v2", "c")]
    one, two = (replica(*each) for each in zip("ab", versions, (kept, kept), states, strict=True))
    assert back(one, two) == expected
    assert one.arguments("rollback")["to"] == two.arguments("rollback")["to"] == expected
    assert one.arguments("rollback")["update_id"] == two.arguments("rollback")["update_id"]


@pytest.mark.parametrize(
    ("kept", "status", "to", "why"),
    [
        ([], {}, None, f"no previous version is kept at every replica: {A} has v1, v2; {B} has none"),
        ([("v2", "c")], {}, "v1", "no previous version is kept here as 'v1'"),
        ([("v1", "other"), ("v2", "c")], {}, None, "hold different tensors as 'v1'"),
        ([("v1", "b")], {"state": "updating", "reason": "a push runs"}, None, "updating: a push runs"),
        ([("v1", "b")], {"lease": {"holder": "other"}}, None, "trainer other is connected"),
    ],
)
def test_no_replica_changes_unless_all_can(kept, status, to, why):
    one, two = replica("a", "v2", [("v1", "b"), ("v2", "c")]), replica("b", "v2", kept, status=status)
    with pytest.raises(ConflictError, match=why):
        back(one, two, to=to)
    assert one.operations == two.operations == ["status"]


def test_my_own_lease_does_not_stand_in_the_way():
    assert back(replica("a", "v2", [("v1", "b")], status={"lease": {"holder": "me"}})) == "v1"


def test_a_replica_that_fails_to_load_is_named():
    two = replica("b", "v2", [("v1", "b")], rollback=ConflictError(B, "rollback", "out of memory"))
    with pytest.raises(CommitError) as caught:
        back(replica("a", "v2", [("v1", "b")]), two)
    assert (caught.value.committed, list(caught.value.failed)) == ((A,), [B])
    assert two.operations[-1] == "fence"


def test_a_reload_returns_the_checkpoints_name():
    client = replica("a", "v2", [])
    assert reload_checkpoint(fleet_of(client), "me", None, Deadline(5)) == "default"


def test_a_reload_that_every_replica_refuses_changes_nothing():
    refusal = ConflictError(A, "reload", "the files have changed; give a version")
    with pytest.raises(ConflictError, match="give a version"):
        reload_checkpoint(fleet_of(replica("a", "v2", [], reload=refusal)), "me", None, Deadline(5))
