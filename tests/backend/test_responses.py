"""The writer's thread: jobs run in order, and streams wait for a long queue."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tritonlive.backend.responses import BEHIND_JOBS, ResponseWriter, Sender


@pytest.fixture
def writer() -> Iterator[ResponseWriter]:
    writer = ResponseWriter()
    yield writer
    writer.close()


def test_a_stream_waits_for_a_writer_that_is_behind(writer: ResponseWriter) -> None:
    sent: list[int] = []
    may_go_on = threading.Event()
    writer.call(lambda: may_go_on.wait(10) and None)
    for number in range(BEHIND_JOBS + 1):
        writer.call(lambda number=number: sent.append(number))

    async def wait() -> list[int]:
        asyncio.get_running_loop().call_later(0.05, may_go_on.set)
        before = list(sent)
        await asyncio.wait_for(writer.caught_up(), 10)
        return before

    assert asyncio.run(wait()) == []
    assert sent == [*range(BEHIND_JOBS + 1)]


def test_a_stream_does_not_wait_for_a_short_queue(writer: ResponseWriter) -> None:
    may_go_on = threading.Event()
    writer.call(lambda: may_go_on.wait(10) and None)
    writer.call(lambda: None)
    asyncio.run(asyncio.wait_for(writer.caught_up(), 1))
    may_go_on.set()


def test_a_job_that_fails_does_not_end_the_thread(writer: ResponseWriter) -> None:
    sent: list[str] = []
    writer.call(lambda: 1 // 0)
    writer.call(lambda: sent.append("after"))
    writer.close()
    assert sent == ["after"]


async def test_what_was_queued_before_is_sent_when_the_queue_has_drained(writer: ResponseWriter) -> None:
    sent: list[str] = []
    may_go_on = threading.Event()
    writer.call(lambda: may_go_on.wait(10) and None)
    writer.call(lambda: sent.append("before"))
    draining = asyncio.create_task(writer.drained())
    await asyncio.sleep(0.05)
    assert not draining.done()
    assert writer.queue_length == 2, "the job that appends, and the one that signals"
    may_go_on.set()
    await asyncio.wait_for(draining, 10)
    assert sent == ["before"]


class TritonSender:
    """Triton's sender crashes the server if it is used after its last response."""

    def __init__(self) -> None:
        self.flags: list[int] = []
        self.is_marked = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert 1 not in self.flags
        self.flags.append(flags)

    def is_cancelled(self) -> bool:
        assert 1 not in self.flags
        return self.is_marked


async def test_a_request_is_asked_about_after_what_was_queued_before(writer: ResponseWriter) -> None:
    triton = TritonSender()
    sender = Sender(triton)
    assert not await writer.is_cancelled(sender)
    triton.is_marked = True
    assert await writer.is_cancelled(sender)
    writer.finish(sender)
    assert not await writer.is_cancelled(sender), "and Triton is not asked any more"
    assert triton.flags == [1]


@pytest.mark.parametrize("last", ["finish", "fail", "send"])
def test_triton_is_not_called_after_the_last_response(last: str) -> None:
    triton = TritonSender()
    sender = Sender(triton)
    arguments = {"finish": (), "fail": (ValueError("no"),), "send": ({}, True)}[last]
    getattr(sender, last)(*arguments)
    assert not sender.is_cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        sender.finish()
    assert triton.flags == [1]


async def test_a_question_that_fails_is_not_waited_for(writer: ResponseWriter) -> None:
    assert not await asyncio.wait_for(writer.is_cancelled(Sender(object())), 10)
