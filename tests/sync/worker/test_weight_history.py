"""A worker knows only those weights that it has loaded."""

import pytest
import torch

from sync import TransferError
from sync.transport.worker.memory import HostMemory, MemoryPool
from sync.weights.digest import tensor_digest
from sync.weights.weight_source import ParamMeta
from sync.worker.staged_update import StagedUpdate
from sync.worker.weight_history import WeightHistory


def update(**values: float) -> StagedUpdate:
    memory = HostMemory(16 * len(values))
    tensors, digests = [], {}
    for at, (name, value) in enumerate(values.items()):
        tensor = memory.data[16 * at : 16 * (at + 1)].view(torch.float32).fill_(float(value))
        tensors.append((name, tensor))
        digests[ParamMeta(name, "float32", (4,))] = tensor_digest(tensor)
    return StagedUpdate(tensors, digests, memory)


def load(history: WeightHistory, update_id: str, what: StagedUpdate, *keep: str) -> None:
    history.add(update_id, what)
    history.keep_only([*keep, update_id])
    history.current = update_id


def take(pool: MemoryPool) -> HostMemory:
    return pool.take(HostMemory, 16, lambda _: True, lambda: HostMemory(16))


@pytest.fixture
def pool() -> MemoryPool:
    return MemoryPool()


@pytest.fixture
def history(pool: MemoryPool) -> WeightHistory:
    return WeightHistory(pool)


def test_nothing_is_unchanged_before_the_first_load(history):
    assert history.current is None
    assert not history.is_unchanged(update(a=0))


def test_unchanged_means_bit_for_bit(history):
    load(history, "u1", update(a=1))
    assert history.is_unchanged(update(a=1))
    assert not history.is_unchanged(update(a=2))
    assert not history.is_unchanged(update(b=1))
    assert not history.is_unchanged(update(a=1, b=1))


def test_what_the_model_holds_is_unknown_after_anything_else_touched_it(history):
    load(history, "u1", update(a=1))
    history.current = None  # a failed load, a reset, a sleep
    assert not history.is_unchanged(update(a=1))
    assert history.require("u1")["a"][0] == 1, "and yet it can be loaded again"


def test_ids_mean_the_same_at_every_rank_whatever_came_of_a_load(pool):
    ranks = WeightHistory(pool), WeightHistory(MemoryPool())
    for rank, succeeds in zip(ranks, (True, False), strict=True):
        load(rank, "u1", update(a=1))
        rank.add("u2", update(a=2))
        rank.keep_only(["u1", "u2"])
        rank.current = "u2" if succeeds else None
    assert ranks[0].describe() == ranks[1].describe()
    assert [entry["id"] for entry in ranks[0].describe()] == ["u1", "u2"]


def test_a_digest_does_not_depend_on_the_order(history):
    load(history, "u1", update(a=1, b=2))
    load(history, "u2", update(b=2, a=1), "u1")
    load(history, "u3", update(a=2, b=1), "u1", "u2")
    one, two, three = (entry["digest"] for entry in history.describe())
    assert one == two != three


def test_dropped_versions_give_their_memory_back(history, pool):
    first = update(a=1)
    load(history, "u1", first)
    load(history, "u2", update(a=2), "u1")
    assert take(pool) is not first.memory
    load(history, "u3", update(a=3), "u2")
    assert take(pool) is first.memory
    with pytest.raises(TransferError, match="does not hold the tensors of u1"):
        history.require("u1")


def test_without_tensors_there_is_nothing_to_go_back_to(history, pool):
    pushed = update(a=1)
    load(history, "u1", pushed)
    history.drop_tensors()
    assert history.is_unchanged(update(a=1))
    assert [entry["is_loadable"] for entry in history.describe()] == [False]
    assert take(pool) is pushed.memory
    with pytest.raises(TransferError):
        history.require("u1")


def test_a_partial_update_shares_the_rest_with_its_base(history, pool):
    base = update(a=1, b=2)
    load(history, "u1", base)
    entry = history.add("u2", update(b=3), base=history.entry("u1"))
    assert {name: tensor[0].item() for name, tensor in entry.tensors.items()} == {"a": 1, "b": 3}
    history.current = "u2"
    history.keep_only(["u2"])
    assert pool.take(HostMemory, 32, lambda _: True, lambda: HostMemory(32)) is not base.memory, "it is still needed"
    assert history.is_unchanged(update(a=1, b=3))
    load(history, "u3", update(a=0, b=0))
    history.keep_only(["u3"])
    assert pool.take(HostMemory, 32, lambda _: True, lambda: HostMemory(32)) is base.memory
