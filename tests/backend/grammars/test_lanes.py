"""The order in which grammars are compiled."""

import asyncio

import pytest

from tritonlive.backend.grammars.lanes import Crowded, Lane


class Work:
    """Tasks in a lane; each ends when the test says so."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, *names: str) -> None:
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name))
            await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)

    async def _run(self, name: str) -> None:
        async with self.lane:
            self.begun.append(name)
            await self.ends[name].wait()


async def test_the_newest_comes_next() -> None:
    work = Work(Lane(1, 9))
    await work.add("a", "b", "c")
    assert work.begun == ["a"]
    await work.end("a")
    await work.end("c")
    await work.end("b")
    assert work.begun == ["a", "c", "b"]


async def test_all_slots_are_used_and_given_back() -> None:
    work = Work(Lane(2, 9))
    await work.add("a", "b", "c")
    assert work.begun == ["a", "b"]
    for name in ("b", "a", "c"):
        await work.end(name)
    await work.add("d", "e", "f")
    assert work.begun == ["a", "b", "c", "d", "e"]
    for name in ("d", "e", "f"):
        await work.end(name)


async def test_the_longest_waiting_is_refused_when_too_many_wait() -> None:
    work = Work(Lane(1, 2))
    await work.add("a", "b", "c", "d")
    with pytest.raises(Crowded, match="too many new grammars"):
        await work.tasks["b"]
    await work.end("a")
    await work.end("d")
    await work.end("c")
    assert work.begun == ["a", "d", "c"]


async def test_one_that_gives_up_blocks_nobody() -> None:
    work = Work(Lane(1, 9))
    await work.add("a", "b", "c")
    work.tasks["c"].cancel()
    work.ends["a"].set()
    await work.tasks["a"]
    work.tasks["b"].cancel()  # its turn has come, and it has not run since
    await asyncio.gather(*work.tasks.values(), return_exceptions=True)
    await work.add("d")
    assert work.begun[-1] == "d"
    await work.end("d")
