"""Streams whose plain events are stamped instead of built.

Between its first event and its last a stream says the same again and again, with another piece of text. vLLM builds
each of these events from three pydantic models, which costs as much as everything else that a front end does for a
token. Here vLLM's own generator makes the first event of each choice, and all that are not plain; the others are that
first one with another text in it. So what an event looks like stays vLLM's, whatever that is.
"""

import types
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from vllm.outputs import RequestOutput

from openai_frontend.streaming.shortcut import Shortcut
from openai_frontend.streaming.stamps import Stamps

T = TypeVar("T")
HUNGRY = object()


class Feed(Generic[T]):
    """What vLLM's generator iterates over: it gets the items that `give` was called with."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._end: BaseException | None = None

    def give(self, item: T) -> None:
        self._items.append(item)

    def end(self, reason: Exception | None = None) -> None:
        """No more items; `reason` is raised to vLLM's generator."""
        self._end = reason or StopAsyncIteration()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._end is not None:
                raise self._end
            await _hunger()
        return self._items.popleft()


@types.coroutine
def _hunger() -> Generator[Any, Any, None]:
    yield HUNGRY  # to Pull.next, which drives the generator that waits here


class Pull:
    """Takes events out of a generator that takes its items from a Feed, without a task for it."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        self._events = events
        self._waiting: Any = None  # an `anext` that stopped because the feed was empty

    @types.coroutine
    def next(self) -> Generator[Any, Any, Any]:
        """The next event, HUNGRY when the feed has to be given something first, None after the last event."""
        step: Any = self._waiting or anext(self._events).__await__()
        self._waiting = None
        go_on, with_what = step.send, None
        while True:
            try:
                waits_for = go_on(with_what)
            except StopIteration as event:
                return event.value
            except StopAsyncIteration:
                return None
            if waits_for is HUNGRY:
                self._waiting = step
                return HUNGRY
            try:
                yield waits_for
                go_on, with_what = step.send, None
            except BaseException as error:  # the generator's to handle, a cancellation above all
                go_on, with_what = step.throw, error

    async def close(self) -> None:
        if self._waiting is not None:  # it stands in the middle of an `anext`, which `aclose` cannot end
            with suppress(GeneratorExit, StopAsyncIteration):
                self._waiting.throw(GeneratorExit())
        await self._events.aclose()


async def stamped(
    items: AsyncIterator[T],
    result_of: Callable[[T], tuple[int, RequestOutput]],
    build: Callable[[AsyncIterator[T]], AsyncGenerator[str, None]],
    *,
    stamps: Stamps | None,
    finish: Callable[[int, RequestOutput], Callable[[str], str]],
    way: Shortcut | None = None,
) -> AsyncGenerator[str, None]:
    """The events of the generator that `build` makes over `items`, those in between stamped, an item's in one piece.

    result_of: an item's result, and the number of the first choice in it.
    stamps: None for a stream whose events have to be built, every one.
    finish: called with what vLLM is given; changes the events that it makes of it.
    way: the shortcut for stamped events, where all items are results of one prompt.
    """
    feed: Feed[T] = Feed()
    pull = Pull(build(feed))
    source = aiter(items)
    piece = ""  # events that come together: one write to the client, and one thing for it to wake up for
    try:
        while True:
            if way is not None and stamps is not None:
                way.open(stamps)
            try:
                item = await anext(source)
            except StopAsyncIteration:
                feed.end()
                break
            except Exception as error:  # vLLM's generator turns it into an event
                feed.end(error)
                break
            finally:
                if way is not None:
                    way.shut()
            first_choice, result = result_of(item)
            if stamps is not None:
                if (events := stamps.make(first_choice, result)) is not None:
                    stamps.skip(first_choice, result)
                    yield "".join(events)
                    continue
                stamps.restore(first_choice, result)
            change, made = finish(first_choice, result), None
            feed.give(item)
            while (event := await pull.next()) is not HUNGRY and event is not None:
                piece, made = piece + change(event), event
            if event is None:
                break
            if way is not None and result.finished:
                continue  # the items end at once, and with them comes more
            if piece:
                yield piece
                piece = ""
            if stamps is not None:
                stamps.learn(first_choice, result, made)
        while (event := await pull.next()) is not None:
            piece += event
        if piece:
            yield piece
    finally:
        await pull.close()
