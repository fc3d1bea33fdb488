"""What a worker remembers of its weights."""

import weakref

import pytest
import torch

from sync import TransferError
from sync.digest import digest, pack_digests, tensor_digest, unpack_digests
from sync.kept import KeptWeights, Update
from sync.memory import HostMemory
from sync.sources import ParamMeta, TensorSource


def update(value: float) -> Update:
    memory = HostMemory(16)
    tensor = memory.data.view(torch.float32).fill_(float(value))
    return Update([("a", tensor)], {ParamMeta("a", "float32", (4,)): tensor_digest(tensor)}, memory)


class Other(HostMemory):
    """Memory of another kind."""


class Third(HostMemory):
    """Memory of a third kind."""


def take(kept: KeptWeights) -> HostMemory:
    return kept.take_memory(HostMemory, 16, lambda _: True, lambda: HostMemory(16))


def loaded(kept: KeptWeights) -> float:
    return dict(kept.before())["a"][0].item()


@pytest.fixture
def kept() -> KeptWeights:
    return KeptWeights(lambda: TensorSource({"a": torch.zeros(4, dtype=torch.float64)}))


def test_digests_travel_as_bytes():
    values = [0, 1, 2**64 - 1]
    assert unpack_digests(pack_digests(values)) == values
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


def test_memory_of_another_kind_or_size_goes_before_new_is_made(kept):
    for memory in (HostMemory(8), Other(16)):
        kept.release(memory)
    gone = [weakref.ref(memory) for memory in kept._spares]
    del memory

    def seen() -> list[HostMemory | None]:
        return [reference() for reference in gone]

    made = kept.take_memory(Third, 16, lambda _: True, lambda: Third(16 if seen() == [None, None] else 0))
    assert len(made.data) == 16


def test_memory_that_cannot_be_used_now_can_be_later(kept):
    first, second = HostMemory(16), HostMemory(16)
    kept.release(first)
    made = kept.take_memory(HostMemory, 16, lambda _: False, lambda: HostMemory(16))
    assert made is not first
    kept.release(second)
    assert kept.take_memory(HostMemory, 16, lambda spare: spare is second, lambda: HostMemory(16)) is second
    assert take(kept) is first


def test_no_more_than_three_wait_for_their_use(kept):
    first = HostMemory(16)
    for memory in (first, HostMemory(16), HostMemory(16), HostMemory(16)):
        kept.release(memory)
    assert first not in [take(kept) for _ in range(4)]


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
