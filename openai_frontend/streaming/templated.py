"""Streams whose plain chunks are filled into templates instead of built.

Between its first chunk and its last a stream repeats the same chunk with another piece of text. vLLM builds each of
these chunks from three pydantic models. Here vLLM's own generator makes the first chunk of each choice and all that are
not plain; the others are that first one with another text in it. So vLLM alone decides what a chunk looks like.

Without templates a front end needs 22 to 39 % more processor time per token of 64 streams (docs/fast-path.md).
"""

import types
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from vllm.outputs import RequestOutput

from openai_frontend.streaming.chunk_templates import ChunkTemplates
from openai_frontend.streaming.fast_path import StreamFastPath

T = TypeVar("T")
NEEDS_INPUT = object()


class Feed(Generic[T]):
    """The iterator that vLLM's generator reads: it yields the items that `give` was called with."""

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
            await _need_input()
        return self._items.popleft()


@types.coroutine
def _need_input() -> Generator[Any, Any, None]:
    yield NEEDS_INPUT  # received by Pull.next, which drives the generator that waits here


class Pull:
    """Takes chunks out of a generator that reads a Feed, without a task for the generator."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        self._events = events
        self._waiting: Any = None  # an `anext` that stopped because the feed was empty

    @types.coroutine
    def next(self) -> Generator[Any, Any, Any]:
        """The next chunk; NEEDS_INPUT when the feed is empty; None after the last chunk."""
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
            if waits_for is NEEDS_INPUT:
                self._waiting = step
                return NEEDS_INPUT
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


async def templated(
    items: AsyncIterator[T],
    result_of: Callable[[T], tuple[int, RequestOutput]],
    build: Callable[[AsyncIterator[T]], AsyncGenerator[str, None]],
    *,
    templates: ChunkTemplates | None,
    finish: Callable[[int, RequestOutput], Callable[[str], str]],
    fast_path: StreamFastPath | None = None,
) -> AsyncGenerator[str, None]:
    """The chunks of the generator that `build` makes over `items`; the chunks of one item come in one piece.

    result_of: the number of the first choice in an item, and the item's result.
    templates: None if vLLM has to build every chunk of the stream.
    finish: called with each item that vLLM is given; returns a function that changes the chunks made of it.
    fast_path: the request's fast path, if all items are results of one prompt.
    """
    feed: Feed[T] = Feed()
    pull = Pull(build(feed))
    source = aiter(items)
    piece = ""  # chunks that come together are one write to the client, which wakes up once
    try:
        while True:
            if fast_path is not None and templates is not None:
                fast_path.open(templates)
            try:
                item = await anext(source)
            except StopAsyncIteration:
                feed.end()
                break
            except Exception as error:  # vLLM's generator turns it into an event
                feed.end(error)
                break
            finally:
                if fast_path is not None:
                    fast_path.shut()
            first_choice, result = result_of(item)
            if templates is not None:
                if (chunks := templates.fill(first_choice, result)) is not None:
                    templates.note_sent(first_choice, result)
                    yield "".join(chunks)
                    continue
                templates.restore_tokens(first_choice, result)
            change, made = finish(first_choice, result), None
            feed.give(item)
            while (event := await pull.next()) is not NEEDS_INPUT and event is not None:
                piece, made = piece + change(event), event
            if event is None:
                break
            if fast_path is not None and result.finished:
                continue  # the items end at once, and vLLM's last chunks come with their end
            if piece:
                yield piece
                piece = ""
            if templates is not None:
                templates.learn(first_choice, result, made)
        while (event := await pull.next()) is not None:
            piece += event
        if piece:
            yield piece
    finally:
        await pull.close()
