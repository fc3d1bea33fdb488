"""The control calls of one push: their arguments, their order, and the two phases of a commit."""

import dataclasses

import pytest

from sync.deadline import Deadline
from sync.errors import CommitError, ConflictError, TransferError, UnavailableError, UnknownOutcomeError
from sync.push.fleet_update import FleetUpdate
from sync.push.push_context import PushContext
from tests.sync.fleet_clients import ScriptedClient, fleet_of

A, B = "http://a:9000", "http://b:9000"
COMMITTED = {"outcome": "committed", "paused_s": 0.1}
PREPARED = {"digest": "d1", "is_unchanged": False}


def replica(name: str, **answers) -> ScriptedClient:
    return ScriptedClient(
        name,
        **{"prepare_weight_update": PREPARED, "finish_weight_update": COMMITTED, "fence": {"is_live": False}} | answers,
    )


def update_of(*clients: ScriptedClient, seconds: float = 5.0, **options) -> FleetUpdate:
    return FleetUpdate(fleet_of(*clients), PushContext("v1", "wait", Deadline(seconds), **options))


def test_the_context_of_a_push_cannot_be_changed():
    context = PushContext("v1", "keep", Deadline(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.version = "v2"  # ty: ignore[invalid-assignment]
    assert context.update_id != PushContext("v1", "keep", Deadline(1)).update_id


def test_every_call_of_a_push_carries_its_id():
    one, two = replica("a"), replica("b")
    update = update_of(one, two)
    update.start_weight_update()
    update.update_weights({"names": ["w"]})
    update.finish_weight_update()
    for client in (one, two):
        assert client.operations == [
            "start_weight_update",
            "update_weights",
            "prepare_weight_update",
            "finish_weight_update",
        ]
        assert {arguments["update_id"] for _, arguments in client.calls} == {update.context.update_id}
    assert one.arguments("start_weight_update")["in_flight"] == "wait"
    assert one.arguments("finish_weight_update")["weight_version"] == "v1"
    assert one.arguments("update_weights")["update_info"] == {"names": ["w"]}
    assert update.commits == {A: COMMITTED, B: COMMITTED}
    assert update.commit_s > 0


def test_a_partial_push_says_so():
    client = replica("a")
    update = update_of(client, is_partial=True)
    update.update_weights({"names": ["w"]})
    assert client.arguments("update_weights")["update_info"] == {"names": ["w"], "partial": True}


def test_no_replica_commits_when_one_cannot_load():
    one, two = replica("a"), replica("b", prepare_weight_update=ConflictError(B, "prepare_weight_update", "NaN"))
    update = update_of(one, two)
    with pytest.raises(ConflictError, match="NaN"):
        update.finish_weight_update()
    assert not update.is_committing
    assert "finish_weight_update" not in one.operations + two.operations


def test_no_replica_commits_when_they_have_staged_different_tensors():
    one, two = replica("a"), replica("b", prepare_weight_update={"digest": "d2"})
    update = update_of(one, two)
    with pytest.raises(TransferError, match=f"different tensors: {A}: d1, {B}: d2"):
        update.finish_weight_update()
    assert not update.is_committing
    assert "finish_weight_update" not in one.operations + two.operations


def test_a_commit_that_fails_at_one_replica_is_live_at_the_others_and_fenced_there():
    lost = UnavailableError(B, "finish_weight_update", "the engine died")
    one = replica("a")
    two = replica("b", finish_weight_update=lost, abort_weight_update={"is_live": False, "result": None})
    update = update_of(one, two)
    with pytest.raises(CommitError) as caught:
        update.finish_weight_update()
    assert (caught.value.committed, dict(caught.value.failed)) == ((A,), {B: lost})
    assert update.is_committing
    assert update.commits == {A: COMMITTED}
    assert two.operations[-2:] == ["abort_weight_update", "fence"]


def test_a_commit_whose_answer_is_lost_counts_when_the_replica_says_it_is_live():
    lost = UnavailableError(B, "finish_weight_update", "the connection broke")
    two = replica("b", finish_weight_update=lost, abort_weight_update={"is_live": True, "result": COMMITTED})
    update = update_of(replica("a"), two)
    update.finish_weight_update()
    assert update.commits == {A: COMMITTED, B: COMMITTED}


def test_a_replica_that_cannot_be_asked_leaves_the_outcome_unknown():
    gone = UnavailableError(B, "x", "nobody answers")
    two = replica("b", finish_weight_update=gone, abort_weight_update=gone, fence=gone)
    with pytest.raises(UnknownOutcomeError) as caught:
        update_of(replica("a"), two).finish_weight_update()
    assert list(caught.value.unknown) == [B]


def test_the_first_refusal_of_the_weights_is_reported():
    refused: list[BaseException] = []
    error = ConflictError(B, "update_weights", "not now")
    with pytest.raises(ConflictError):
        update_of(replica("a"), replica("b", update_weights=error)).update_weights({}, refused.append)
    assert refused == [error]
