"""What a worker remembers of its weights."""

import pytest
import torch

from sync import TransferError
from sync.digest import digest, tensor_digest
from sync.kept import KeptWeights
from sync.memory import HostMemory
from sync.sources import ParamMeta, TensorSource
from sync.update import Update


def update(value: float) -> Update:
    memory = HostMemory(16)
    tensor = memory.data.view(torch.float32).fill_(float(value))
    return Update([("a", tensor)], {ParamMeta("a", "float32", (4,)): tensor_digest(tensor)}, memory)


def take(kept: KeptWeights) -> HostMemory:
    return kept.pool.take(HostMemory, 16, lambda _: True, lambda: HostMemory(16))


def loaded(kept: KeptWeights) -> float:
    return dict(kept.before())["a"][0].item()


@pytest.fixture
def kept() -> KeptWeights:
    return KeptWeights(lambda: TensorSource({"a": torch.zeros(4, dtype=torch.float64)}))


def test_a_digest_counts_every_byte():
    assert digest(torch.zeros(8, dtype=torch.uint8)) != digest(torch.zeros(9, dtype=torch.uint8))


def test_a_digest_is_of_what_a_view_shows():
    matrix = torch.arange(6.0).view(2, 3)
    assert tensor_digest(matrix.t()) == tensor_digest(matrix.t().contiguous()) != tensor_digest(matrix)


def test_the_checkpoint_is_what_serves_first(kept):
    assert kept.matches(update(0).digests)
    assert not kept.matches(update(1).digests)


def test_back_to_the_checkpoint_and_forth(kept):
    kept.commit(update(1))
    assert kept.matches(update(1).digests)
    assert loaded(kept) == 0
    kept.roll_back()
    assert kept.matches(update(0).digests)
    assert loaded(kept) == 1


def test_a_failed_load_leaves_nothing_to_match_and_goes_back_to_the_current(kept):
    kept.commit(update(1))
    kept.commit(update(2))
    kept.is_spoiled = True
    assert not kept.matches(update(2).digests)
    assert loaded(kept) == 2
    kept.roll_back()
    assert kept.matches(update(2).digests)
    assert loaded(kept) == 1


def test_memory_is_used_again_two_updates_later(kept):
    first = update(1)
    kept.commit(first)
    kept.commit(update(2))
    kept.commit(update(3))
    assert take(kept) is first.memory
    assert take(kept) is not first.memory


def test_without_keeping_only_digests_are_kept(kept):
    kept.is_kept = False
    pushed = update(1)
    kept.commit(pushed)
    assert kept.matches(update(1).digests)
    assert take(kept) is pushed.memory
    with pytest.raises(TransferError, match="no previous version is kept"):
        kept.before()


def test_without_a_checkpoint_at_hand_nothing_matches():
    assert not KeptWeights(lambda: None).matches(update(0).digests)
