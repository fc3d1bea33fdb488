"""The writer's thread: everything in order, and nobody queues without end."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def responses(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("responses")


@pytest.fixture
def writer(responses: ModuleType) -> Iterator[Any]:
    writer = responses.ResponseWriter()
    yield writer
    writer.close()


def test_who_waits_for_a_writer_that_is_behind_finds_everything_sent(responses: ModuleType, writer: Any) -> None:
    sent: list[int] = []
    may_go_on = threading.Event()
    writer.call(lambda: may_go_on.wait(10) and None)
    for number in range(responses.BEHIND_JOBS + 1):
        writer.call(lambda number=number: sent.append(number))

    async def wait() -> list[int]:
        asyncio.get_running_loop().call_later(0.05, may_go_on.set)
        before = list(sent)
        await asyncio.wait_for(writer.caught_up(), 10)
        return before

    assert asyncio.run(wait()) == []
    assert sent == [*range(responses.BEHIND_JOBS + 1)]


def test_nobody_waits_for_a_writer_that_is_not_behind(writer: Any) -> None:
    may_go_on = threading.Event()
    writer.call(lambda: may_go_on.wait(10) and None)
    writer.call(lambda: None)
    asyncio.run(asyncio.wait_for(writer.caught_up(), 1))
    may_go_on.set()


def test_a_job_that_fails_does_not_end_the_thread(writer: Any) -> None:
    sent: list[str] = []
    writer.call(lambda: 1 // 0)
    writer.call(lambda: sent.append("after"))
    writer.close()
    assert sent == ["after"]


async def test_what_was_queued_before_is_sent_when_the_queue_has_drained(writer: Any) -> None:
    sent: list[str] = []
    may_go_on = threading.Event()
    writer.call(lambda: may_go_on.wait(10) and None)
    writer.call(lambda: sent.append("before"))
    draining = asyncio.create_task(writer.drained())
    await asyncio.sleep(0.05)
    assert not draining.done()
    assert writer.queue_length == 2, "the job that appends, and the one that tells"
    may_go_on.set()
    await asyncio.wait_for(draining, 10)
    assert sent == ["before"]
