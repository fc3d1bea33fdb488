import threading
import time

import pytest
import torch

from sync import (
    CheckError,
    CommitError,
    ConflictError,
    ControlError,
    DeadlineError,
    InvalidError,
    RefusedError,
    RejectedError,
    TransferError,
    WeightSync,
)
from sync.push.pusher import Pusher
from tests.sync.replica import Replica
from tests.sync.stand_in import KEY


@pytest.fixture
def replica(weights):
    with Replica({name: tensor * 0 for name, tensor in weights.items()}) as running:
        yield running


@pytest.fixture
def sync(replica):
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=10) as client:
        yield client


def holds(replica: Replica, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(replica.tensors[name], tensor) for name, tensor in weights.items())


def test_a_push_arrives_bit_by_bit(replica, sync, weights):
    report = sync.push(weights)
    assert holds(replica, weights)
    assert (report.version, replica.version) == ("v1", "v1")
    assert report.num_tensors == len(weights)
    assert report.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    phases = report.connect_s + report.check_s + report.transfer_s + report.commit_s
    assert phases == pytest.approx(report.seconds, abs=1e-6)
    assert (report.paused_s, report.load_s) == (0.02, 0.01)
    assert report.targets == (replica.address,)


def test_the_group_is_kept_for_the_next_push(replica, sync, weights):
    for number in (1, 2, 3):
        moved = {name: tensor + number for name, tensor in weights.items()}
        assert sync.push(moved).version == f"v{number}"
        assert holds(replica, moved)
    assert replica.calls.count("init_weight_transfer_engine") == 1


def test_a_module_and_a_generator(replica, sync, weights):
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = torch.nn.Linear(8, 8, dtype=torch.float64)

    model = Model()
    replica.tensors = {"l.weight": torch.zeros(8, 8), "l.bias": torch.zeros(8)}
    sync.push(model)
    assert torch.equal(replica.tensors["l.weight"], model.l.weight.detach().float())
    sync.push((name, parameter * 2) for name, parameter in model.named_parameters())
    assert torch.equal(replica.tensors["l.bias"], model.l.bias.detach().float() * 2)


def test_strided_views_are_sent_as_they_look(replica, sync):
    replica.tensors = {"a": torch.zeros(6, 4), "b": torch.zeros(3000, 2000)}
    base, big = torch.randn(4, 6), torch.randn(2000, 3000)
    sync.push({"a": base.t(), "b": big.t()})
    assert holds(replica, {"a": base.t(), "b": big.t()})


@pytest.mark.parametrize(("served", "given", "expected"), [("v41", None, "v42"), ("base", None, "v1"), ("v1", 7, "7")])
def test_versions(replica, sync, weights, served, given, expected):
    replica.version = served
    assert sync.push(weights, given).version == expected
    assert replica.version == expected


def test_progress_reaches_the_end(sync, weights):
    seen: list[tuple[int, int]] = []
    sync.push(weights, progress=lambda sent, total: seen.append((sent, total)))
    assert seen[-1][0] == seen[-1][1] > 0


def test_what_does_not_fit_is_not_announced(replica, sync, weights):
    with pytest.raises(CheckError, match=r"extra: not a tensor"):
        sync.push(weights | {"extra": torch.ones(1)})
    with pytest.raises(CheckError):
        sync.check(weights | {"extra": torch.ones(1)})
    sync.check(weights)
    assert set(replica.calls) == {"replica_status", "weight_parameters"}


def test_nan_and_inf_are_refused_by_name(replica, sync, weights):
    sync.push(weights)
    broken = dict(weights)
    broken["model.layers.0.bias"] = torch.full((16,), float("nan"))
    broken["model.layers.1.half"] = torch.full((3, 5), float("inf")).half()
    with pytest.raises(RejectedError, match=r"NaN or Inf in model\.layers\.0\.bias, model\.layers\.1\.half"):
        sync.push(broken)
    assert (replica.version, replica.state) == ("v1", "serving")
    assert holds(replica, weights)
    assert sync.push(weights).version == "v2"


def test_a_worker_that_objects(replica, sync, weights):
    replica.reject_reason = "names: not mine"
    with pytest.raises(RejectedError, match="worker 1 does not take the update: names: not mine"):
        sync.push(weights)
    assert replica.state == "serving"
    replica.reject_reason = ""
    sync.push(weights)


def test_a_replica_that_does_not_let_us_in_is_left_alone(replica, sync, weights):
    replica.fail["reserve_lease"] = (409, "another trainer's update is running")
    with pytest.raises(ConflictError, match="another trainer"):
        sync.push(weights)
    assert replica.calls[-1] == "reserve_lease"  # no abort: that would end the other's update


@pytest.mark.parametrize("operation", ["start_weight_update", "update_weights", "finish_weight_update"])
def test_a_refusal_at_any_step_gives_up_everything(replica, sync, weights, operation):
    replica.fail[operation] = (409, "not now")
    with pytest.raises((ConflictError, CommitError), match="not now"):
        sync.push(weights)
    assert replica.calls[-2:] == ["abort_weight_update", "shutdown_weight_transfer_engine"]
    assert replica.version == "default"
    replica.fail.clear()
    assert sync.push(weights).version == "v1"


def test_what_fails_while_giving_up_is_noted(replica, sync, weights):
    replica.fail = {"start_weight_update": (409, "not now"), "abort_weight_update": (503, "gone")}
    with pytest.raises(ConflictError) as caught:
        sync.push(weights)
    assert "gone" in caught.value.__notes__[0]


def test_a_trainer_that_was_displaced_connects_again(replica, sync, weights):
    sync.push(weights)
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=10) as other:
        assert other.push(weights).version == "v2"
    moved = {name: tensor + 1 for name, tensor in weights.items()}
    assert sync.push((name, tensor) for name, tensor in moved.items()).version == "v3"
    assert holds(replica, moved)


@pytest.mark.parametrize("state", ["updating", "restarting"])
def test_a_replica_that_is_busy(replica, sync, weights, state):
    replica.state = state
    with pytest.raises(ConflictError, match=state):
        sync.push(weights)


def test_the_wrong_backend_says_how_to_mend_it(replica, sync, weights):
    replica.backend = None
    with pytest.raises(InvalidError, match=r"--weight-transfer-config '\{\"backend\": \"gloo\"\}'"):
        sync.push(weights)


def test_the_wrong_key(replica, weights):
    with WeightSync(replica.address, backend="gloo", control_key="wrong") as sync, pytest.raises(RefusedError):
        sync.push(weights)


def test_a_replica_that_stops_answering(replica, weights, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(replica, "update_weights", lambda _body: released.wait(20) and {})
    began = time.monotonic()
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=1) as sync:
        with pytest.raises(DeadlineError):
            sync.push(weights)
        released.set()
    assert time.monotonic() - began < 15


def test_workers_that_never_join(replica, weights, monkeypatch):
    monkeypatch.setattr(replica, "init_weight_transfer_engine", lambda _body: {})
    began = time.monotonic()
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=1) as sync:
        with pytest.raises((DeadlineError, TransferError)):
            sync.push(weights)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    "arguments",
    [{"backend": "mpi"}, {"timeout": 0}, {"targets": []}],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        WeightSync(**{"targets": "http://host", "backend": "gloo"} | arguments)


def test_the_key_is_in_no_repr():
    assert "secret" not in repr(WeightSync("http://user:secret@host", backend="gloo", control_key="secret"))


# ---- several replicas -------------------------------------------------------------------------------------------


@pytest.fixture
def fleet(weights):
    zeros = {name: tensor * 0 for name, tensor in weights.items()}
    with Replica(zeros, world_size=2) as one, Replica(zeros) as two:
        yield one, two


def test_all_replicas_get_one_broadcast(fleet, weights):
    with WeightSync([replica.address for replica in fleet], backend="gloo", control_key=KEY, timeout=10) as sync:
        assert sync.push(weights).targets == tuple(replica.address for replica in fleet)
    for replica in fleet:
        assert holds(replica, weights)
        assert replica.version == "v1"


@pytest.mark.parametrize(
    "operation",
    ["reserve_lease", "init_weight_transfer_engine", "start_weight_update", "update_weights", "prepare_weight_update"],
)
def test_when_one_refuses_no_replica_changes(fleet, weights, operation):
    one, two = fleet
    two.fail[operation] = (409, "not now")
    with WeightSync([one.address, two.address], backend="gloo", control_key=KEY, timeout=5) as sync:
        with pytest.raises(ControlError, match="not now"):
            sync.push(weights)
    assert [replica.version for replica in fleet] == ["default", "default"]
    assert [replica.state for replica in fleet] == ["serving", "serving"]


def test_a_failed_commit_names_who_did_and_who_did_not(fleet, weights):
    one, two = fleet
    two.fail["finish_weight_update"] = (503, "the engine died")
    with WeightSync([one.address, two.address], backend="gloo", control_key=KEY, timeout=5) as sync:
        with pytest.raises(CommitError) as caught:
            sync.push(weights)
    assert caught.value.committed == (one.address,)
    assert list(caught.value.failed) == [two.address]
    assert (one.state, two.state) == ("serving", "fenced")


def test_workers_are_called_only_when_every_replica_has_given_its_lease(fleet, weights):
    """The workers of the other replicas would wait for the one that refused."""
    one, two = fleet
    two.fail["reserve_lease"] = (409, "another trainer is connected")
    with WeightSync([one.address, two.address], backend="gloo", control_key=KEY, timeout=5) as sync:
        with pytest.raises(ConflictError, match="another trainer is connected"):
            sync.push(weights)
    assert "init_weight_transfer_engine" not in one.calls + two.calls


def test_a_commit_whose_answer_is_lost_is_asked_for(fleet, weights):
    one, two = fleet
    finish = two.finish_weight_update

    def commit_and_lose_the_answer(body):
        finish(body)
        raise ConnectionError("lost")

    two.finish_weight_update = commit_and_lose_the_answer
    with WeightSync([one.address, two.address], backend="gloo", control_key=KEY, timeout=5) as sync:
        assert set(sync.push(weights).targets) == {one.address, two.address}
    assert (two.state, two.version) == ("serving", "v1")


def test_a_commit_under_way_at_the_deadline_is_waited_for(replica, weights):
    """It was called off by a DeadlineError, "nothing changed", and went live a moment later."""
    lock, finish, abort = threading.Lock(), replica.finish_weight_update, replica.abort_weight_update

    def commit_slowly(body):
        with lock:
            time.sleep(3)
            return finish(body)

    def abort_when_it_is_over(body):
        with lock:
            return abort(body)

    replica.finish_weight_update, replica.abort_weight_update = commit_slowly, abort_when_it_is_over
    with WeightSync(replica.address, backend="gloo", control_key=KEY, timeout=2) as sync:
        assert sync.push(weights).version == replica.version == "v1"
    assert replica.state == "serving"


def test_a_fleet_goes_back_together(fleet, weights):
    """After a failed commit a rollback once left one replica on v2 and one on v1."""
    one, two = fleet
    with WeightSync([one.address, two.address], backend="gloo", control_key=KEY, timeout=5) as sync:
        sync.push(weights, "v1")
        sync.push(weights, "v2")
        two.fail["finish_weight_update"] = (500, "out of memory")
        with pytest.raises(CommitError):
            sync.push(weights, "v3")
        two.kept.append({"weight_version": "v2", "digest": None})  # it still holds it
        assert sync.rollback() == "v2"
        assert [(replica.version, replica.state) for replica in fleet] == [("v2", "serving")] * 2


@pytest.mark.parametrize("kept", [[], [{"weight_version": "v1", "digest": "other"}]])
def test_a_fleet_goes_back_only_if_every_replica_can(fleet, weights, kept):
    one, two = fleet
    one.kept, two.kept = [{"weight_version": "v1", "digest": "same"}], kept
    with WeightSync([one.address, two.address], backend="gloo", control_key=KEY, timeout=5) as sync:
        with pytest.raises(ConflictError, match="different tensors" if kept else "no previous version is kept"):
            sync.rollback()
    assert "rollback" not in one.calls + two.calls


def test_replicas_of_different_checkpoints(fleet, weights):
    one, two = fleet
    two.tensors["model.layers.0.bias"] = torch.zeros(16).bfloat16()
    with WeightSync([one.address, two.address], backend="gloo", control_key=KEY, timeout=5) as sync:
        with pytest.raises(InvalidError, match="serves another checkpoint"):
            sync.push(weights)


def test_the_timeout_is_read_at_each_push(monkeypatch):
    seconds = []
    monkeypatch.setattr(
        Pusher, "push", lambda _self, _weights, _options, _caller, deadline: seconds.append(deadline.seconds)
    )
    client = WeightSync("http://127.0.0.1:1", backend="gloo", control_key=KEY)
    for timeout in (300.0, 2.0):
        client.timeout = timeout
        client.push({"a": torch.ones(1)})
    assert seconds == [300, 2]
