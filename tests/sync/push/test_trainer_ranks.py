"""Ranks as threads over torch's in-process store: the rendezvous, and the data of a push."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from sync.deadline import Deadline
from sync.errors import CheckError, CommitError, ConflictError, SourceError, SyncError, UnavailableError
from sync.push.collective_push import GATHERED, _end, collective_push, collective_reason
from sync.push.push_outcome import encode_error
from sync.push.report import PushReport
from sync.push.trainer_ranks import TrainerRanks
from sync.weights.sources import TensorSource
from sync.weights.weight_source import ParamMeta, WeightSource

WHY = "the weights are sharded (DTensor)"
REPORT = PushReport("v7", 8, 2, 0.5, 0.1, 0.1, 0.2, 0.1, 0.05, 0.04, ("http://a", "http://b"), ("http://b",), "gloo")
TENSORS = {"a": torch.ones(2), "b": torch.zeros(2)}

Outcome = PushReport | SyncError


class Counting(TensorSource):
    """Counts the tensors it has yielded."""

    def __init__(self, tensors: dict[str, torch.Tensor] = TENSORS) -> None:
        super().__init__(tensors)
        self.yielded: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in super().__iter__():
            self.yielded.append(name)
            yield name, tensor


def call_all(world: int, call: Callable[[TrainerRanks], Any], timeout_s: float = 2.0) -> list[Any]:
    """Result of `call` at each rank, or its SyncError."""
    store = HashStore()

    def run(rank: int) -> Any:
        try:
            return call(TrainerRanks(rank, world, store, timeout_s))
        except SyncError as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))


def read(source: WeightSource) -> PushReport:
    assert [name for name, _ in source] == ["a", "b"]
    return REPORT


# ---- the meeting ------------------------------------------------------------------------------------------------


def test_one_process_pushes_without_a_store():
    assert collective_push(TrainerRanks(), Counting(), read, 5, WHY) is REPORT
    ranks = TrainerRanks.current()
    assert (ranks.rank, ranks.world_size) == (0, 1)


def test_whole_weights_are_pushed_by_one_rank_without_waiting_for_the_others():
    began = time.monotonic()
    assert collective_push(TrainerRanks(0, 2, HashStore()), Counting(), read, 5, None) is REPORT
    assert time.monotonic() - began < 4, "the meeting has 5 s"


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [({1, 3}, "ranks 1, 3 have not called push within 0.5 s"), ({2}, "rank 2 has not called push within 0.5 s")],
)
def test_every_rank_hears_who_did_not_come(absent, sentence):
    def call(ranks: TrainerRanks) -> Outcome | None:
        return None if ranks.rank in absent else collective_push(ranks, Counting(), read, 5, WHY)

    outcomes = call_all(4, call, 0.5)
    expected = f"{sentence}; {WHY}, so every rank of the trainer must call WeightSync.push"
    for rank, outcome in enumerate(outcomes):
        if rank not in absent:
            assert (type(outcome), str(outcome)) == (SourceError, expected)


def test_rank_0_that_does_not_come_is_named():
    outcomes = call_all(3, lambda ranks: ranks.meet(WHY) if ranks.rank else None, 0.3)
    assert all("rank 0 has not called push within 0.3 s" in str(outcome) for outcome in outcomes[1:])


def test_a_rank_that_gave_up_is_not_counted_on_and_may_come_again():
    store = HashStore()
    with pytest.raises(SourceError, match="rank 0 has not called push"):
        TrainerRanks(1, 2, store, 0.1).meet(WHY)
    with pytest.raises(SourceError, match="rank 1 has not called push"):
        TrainerRanks(0, 2, store, 0.1).meet(WHY)
    with ThreadPoolExecutor(2) as pool:
        channels = list(pool.map(lambda rank: TrainerRanks(rank, 2, store, 5).meet(WHY), range(2)))
    channels[0].send({"names": ["a"]})
    assert channels[1].receive() == {"names": ["a"]}
    assert channels[1].receive() is None


def test_ranks_that_come_late_are_waited_for():
    def call(ranks: TrainerRanks) -> Outcome:
        time.sleep((0.4, 0.0, 0.8)[ranks.rank])
        return collective_push(ranks, Counting(), read, 5, WHY)

    assert call_all(3, call, 0.6) == [REPORT] * 3  # rank 1 waits 0.8 s: rank 0 has come by then


def test_the_store_does_not_grow_with_the_pushes():
    store = HashStore()

    def push_often(rank: int) -> list[int]:
        ranks, sizes = TrainerRanks(rank, 2, store, 5), []
        for _ in range(4):
            collective_push(ranks, Counting(), read, 5, WHY)
            sizes.append(store.num_keys())
        return sizes

    with ThreadPoolExecutor(2) as pool:
        sizes, _ = pool.map(push_often, range(2))
    assert max(sizes[1:]) <= sizes[0] + 2


@pytest.mark.parametrize(
    ("arguments", "match"), [((2, 2, HashStore()), "rank"), ((0, 2), "store"), ((0, 1, None, 0), "rank_timeout_s")]
)
def test_arguments_are_checked(arguments, match):
    with pytest.raises(ValueError, match=match):
        TrainerRanks(*arguments)


# ---- the push ---------------------------------------------------------------------------------------------------


def test_every_rank_iterates_once_and_gets_the_report():
    sources = [Counting() for _ in range(3)]
    outcomes = call_all(3, lambda ranks: collective_push(ranks, sources[ranks.rank], read, 5, WHY))
    assert outcomes == [REPORT] * 3
    assert [source.yielded for source in sources] == [["a", "b"]] * 3


def test_rank_0_may_iterate_often_or_never():
    sources = [Counting(), Counting()]

    def push(source: WeightSource) -> PushReport:
        for _ in range(3):
            read(source)
        assert source.metadata() == [ParamMeta.of(name, tensor) for name, tensor in TENSORS.items()]
        return REPORT

    assert call_all(2, lambda ranks: collective_push(ranks, sources[ranks.rank], push, 5, WHY)) == [REPORT] * 2
    assert sources[1].yielded == ["a", "b"] * 3
    outcomes = call_all(2, lambda ranks: collective_push(ranks, sources[ranks.rank], lambda _: REPORT, 5, WHY))
    assert outcomes == [REPORT] * 2
    assert sources[1].yielded == ["a", "b"] * 3


@pytest.mark.parametrize("fails", [False, True])
def test_what_rank_0_leaves_unread_is_drained(fails):
    sources = [Counting({str(number): torch.ones(1) for number in range(20)}) for _ in range(2)]

    def push(source: WeightSource) -> PushReport:
        next(iter(source))
        if fails:
            raise UnavailableError("http://a", "update_weights", "gone")
        return REPORT

    outcomes = call_all(2, lambda ranks: collective_push(ranks, sources[ranks.rank], push, 5, WHY))
    assert [type(outcome) for outcome in outcomes] == [UnavailableError if fails else PushReport] * 2
    assert [len(source.yielded) for source in sources] == [20, 20]


@pytest.mark.parametrize(
    "error",
    [
        CheckError("http://a", ["b: missing", "c: shape is [1], served is [2]"]),
        ConflictError("http://a", "start_weight_update", "not now"),
        CommitError("v2", ["http://a"], {"http://b": UnavailableError("http://b", "finish_weight_update", "died")}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_rank_raises_the_same_error_with_its_fields(error):
    error.add_note("http://b is fenced")

    def push(_source: WeightSource) -> PushReport:
        raise error

    here, there = call_all(2, lambda ranks: collective_push(ranks, Counting(), push, 5, WHY))
    assert here is error
    assert (type(there), str(there)) == (type(error), str(error))
    fields = {name: value for name, value in vars(there).items() if name not in ("__notes__", "failed")}
    assert fields == {name: value for name, value in vars(error).items() if name not in ("__notes__", "failed")}
    assert there.__notes__ == ["http://b is fenced", "raised at rank 0"]
    if isinstance(error, CommitError):
        assert {target: (type(e), str(e)) for target, e in there.failed.items()} == {
            target: (type(e), str(e)) for target, e in error.failed.items()
        }


@pytest.mark.parametrize("has_ended", [True, False])
def test_rank_0s_error_wins_over_one_of_this_ranks_iteration(has_ended):
    gathering: Future[None] = Future()
    if has_ended:
        gathering.set_exception(RuntimeError("CUDA error at rank 1"))
    outcome = {**encode_error(UnavailableError("http://a", "update_weights", "gone")), GATHERED: has_ended}
    with pytest.raises(UnavailableError, match="gone"):
        _end(outcome, gathering, Deadline(5))


def test_an_error_of_another_kind_ends_the_other_ranks_too():
    def push(_source: WeightSource) -> PushReport:
        raise ZeroDivisionError("in a progress callback")

    store = HashStore()

    def run(rank: int) -> str:
        try:
            collective_push(TrainerRanks(rank, 2, store, 2), Counting(), push, 5, WHY)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [
            "ZeroDivisionError: in a progress callback",
            "TransferError: ZeroDivisionError: in a progress callback",
        ]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"b": TENSORS["b"], "a": TENSORS["a"]}, "tensor 0 is a at rank 0 and b at rank 1"),
        ({"a": TENSORS["a"]}, "tensor 1 is b at rank 0 and none at rank 1"),
        ({**TENSORS, "c": TENSORS["a"]}, "tensor 2 is none at rank 0 and c at rank 1"),
    ],
)
def test_ranks_with_other_tensors_are_refused_before_they_gather(other, difference):
    sources = [Counting(), Counting(other)]
    outcomes = call_all(2, lambda ranks: collective_push(ranks, sources[ranks.rank], read, 5, WHY))
    assert all(isinstance(outcome, SourceError) and difference in str(outcome) for outcome in outcomes)
    assert [source.yielded for source in sources] == [[], []]


def test_an_error_in_another_ranks_iteration_reaches_all():
    class Failing(Counting):
        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            yield "a", TENSORS["a"]
            raise SourceError("out of memory at rank 1")

    def push(source: WeightSource) -> PushReport:
        for _ in source:
            time.sleep(0.5)
        return REPORT

    def call(ranks: TrainerRanks) -> PushReport:
        return collective_push(ranks, Failing() if ranks.rank == 1 else Counting(), push, 5, WHY)

    outcomes = call_all(3, call)
    assert [(type(outcome), str(outcome)) for outcome in outcomes] == [(SourceError, "out of memory at rank 1")] * 3
    assert "raised at rank 1" in outcomes[0].__notes__


# ---- which pushes need every rank -------------------------------------------------------------------------------


def test_only_weights_that_must_be_gathered_need_every_rank():
    class Export(Counting):
        is_collective = True

    module = torch.nn.Linear(2, 2)
    whole = (module, module.state_dict(), list(module.state_dict().items()), Counting(), module.named_parameters())
    assert [collective_reason(weights) for weights in (*whole, "/a/folder")] == [None] * 6
    assert collective_reason(Export()) == "the weights are gathered from all ranks (is_collective)"
