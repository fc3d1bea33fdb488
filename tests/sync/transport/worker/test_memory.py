"""The pool of staging memory: kept and released segments, and its upper limit."""

import weakref

import pytest

from sync.transport.worker.memory import HostMemory, MemoryPool, UpdateMemory


class Other(HostMemory):
    """Memory of another kind."""


def take(pool: MemoryPool) -> HostMemory:
    return pool.take(HostMemory, 16, lambda _: True, lambda: HostMemory(16))


def test_released_memory_is_used_again_oldest_first():
    pool = MemoryPool(2)
    first, second = HostMemory(16), HostMemory(16)
    pool.release(first)
    pool.release(second)
    assert [take(pool), take(pool)] == [first, second]
    assert take(pool) not in (first, second)


@pytest.mark.parametrize("max_spares", [0, 1, 2, 3])
def test_no_more_wait_than_the_owner_allows(max_spares):
    pool = MemoryPool(max_spares)
    released = [HostMemory(16) for _ in range(4)]
    for memory in released:
        pool.release(memory)
    taken = [take(pool) for _ in range(4)]
    assert [memory for memory in taken if memory in released] == released[4 - max_spares :]


def test_a_lower_limit_frees_the_oldest_at_once():
    pool = MemoryPool(3)
    spares = [HostMemory(16) for _ in range(3)]
    gone = [weakref.ref(memory) for memory in spares]
    while spares:
        pool.release(spares.pop(0))
    pool.max_spares = 1
    assert [reference() is None for reference in gone] == [True, True, False]


def test_memory_of_another_kind_or_size_goes_before_new_is_made():
    pool = MemoryPool(3)
    for memory in (HostMemory(8), Other(16)):
        pool.release(memory)
    gone = [weakref.ref(memory) for memory in pool._spares]
    del memory

    class Wanted(HostMemory):
        pass

    def make() -> Wanted:
        assert [reference() for reference in gone] == [None, None]
        return Wanted(16)

    assert len(pool.take(Wanted, 16, lambda _: True, make).data) == 16


def test_memory_that_cannot_be_used_now_can_be_later():
    pool = MemoryPool(2)
    first, second = HostMemory(16), HostMemory(16)
    pool.release(first)
    assert pool.take(HostMemory, 16, lambda _: False, lambda: HostMemory(16)) is not first
    pool.release(second)
    assert pool.take(HostMemory, 16, lambda spare: spare is second, lambda: HostMemory(16)) is second
    assert take(pool) is first


@pytest.mark.parametrize(("keeps", "most"), [(0, 1), (1, 2), (2, 3)])
def test_memories_at_once_while_staging(keeps, most):
    """`keeps` versions are kept by the owner: with one spare there are never more than those and the staged one."""
    alive: set[int] = set()

    class Counted(HostMemory):
        def __init__(self) -> None:
            super().__init__(16)
            alive.add(id(self))
            weakref.finalize(self, alive.discard, id(self))

    pool, kept, peak = MemoryPool(1), list[UpdateMemory](), 0
    for _ in range(8):
        staged = pool.take(Counted, 16, lambda _: True, Counted)
        peak = max(peak, len(alive))
        kept.append(staged)
        if len(kept) > keeps:
            pool.release(kept.pop(0))
        del staged
    assert peak == most
