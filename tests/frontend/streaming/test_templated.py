"""Chunks from templates are bitwise equal to those of vLLM's own generators."""

import asyncio
import copy
import re
from collections.abc import AsyncGenerator, AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.outputs import RequestOutput

from openai_frontend.streaming import fast_path
from openai_frontend.streaming.chunk_templates import ChunkTemplates
from openai_frontend.streaming.templated import templated
from openai_frontend.streaming.templated_serving import TEMPLATED
from openai_frontend.streaming.weight_spans import VERSIONED

from .test_weight_spans import MESSAGES, METADATA, collected, output, result, serving

TEXTS = [
    "",
    " The",
    "",
    'a "quoted"',
    "back\\slash",
    "\n\t\r\b\f\x00\x1f\x7f",
    "é€😀",
    "\u2028</script>",
    '"text":"',
    '"content":""',
]


def steps(num_choices: int) -> list[RequestOutput]:
    """Every text in turn for each choice, sometimes two choices in one result; the choices end one after another."""
    made = [result(*(output(i, [5], text=text) for i in range(num_choices))) for text in TEXTS[:2]]
    made += [result(output(i, [6, 7], text=text)) for text in TEXTS for i in range(num_choices)]
    made += [result(*(output(i, [8], text=text) for i in range(num_choices))) for text in TEXTS]
    ends = [result(output(i, [9], ("v1", 0, 3), text="end")) for i in range(num_choices)]
    for first, second in pairwise(ends):
        made += [first, result(*(output(i, [4], text="late") for i in range(second.outputs[0].index, num_choices)))]
    return [*made, ends[-1]]


def completion(
    handler: Any, results: AsyncIterator[tuple[int, RequestOutput]], num_prompts: int = 2, **options: Any
) -> AsyncGenerator[str, None]:
    request = CompletionRequest(model="m", prompt="x", max_tokens=9, stream=True, **options)
    inputs = [{"prompt": "x"}, {"prompt": "y"}][:num_prompts]
    rest = {"num_prompts": num_prompts, "tokenizer": None, "request_metadata": METADATA}
    return handler.completion_stream_generator(request, inputs, results, "cmpl-1", 0, "m", **rest)


def chat(handler: Any, results: AsyncIterator[RequestOutput], **options: Any) -> AsyncGenerator[str, None]:
    request = ChatCompletionRequest(model="m", messages=MESSAGES, stream=True, **options)
    return handler.chat_completion_stream_generator(request, results, "chatcmpl-1", "m", [], object(), METADATA)


async def each(items: list[Any], error: Exception | None = None) -> AsyncIterator[Any]:
    for item in items:
        yield item
    if error is not None:
        raise error


def bare(events: list[str]) -> list[str]:
    """Without what differs by intent or by the clock."""
    return [re.sub(r',"weight_versions":\[[^]]*\]|"created":\d+', "", event) for event in events]


USAGE = {"stream_options": {"include_usage": True}}
OPTIONS = [{}, USAGE, {"echo": True}, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}]
OPTIONS += [{"return_token_ids": True}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_choices", [1, 3])
def test_a_completion_stream_is_vllms_to_the_byte(num_choices: int, options: dict[str, Any]) -> None:
    def events(*, versioned: bool) -> list[str]:
        items = [
            (prompt, step)
            for pair in zip(steps(num_choices), steps(num_choices), strict=True)
            for prompt, step in enumerate(pair)
        ]
        handler = serving("openai_serving_completion", versioned=versioned, classes=TEMPLATED)
        return asyncio.run(collected(completion(handler, each(items), n=num_choices, **options)))

    assert bare(events(versioned=True)) == bare(events(versioned=False))


@pytest.mark.parametrize("options", [{}, USAGE, OPTIONS[3], OPTIONS[4]])
@pytest.mark.parametrize("num_choices", [1, 3])
def test_a_chat_stream_is_vllms_to_the_byte(num_choices: int, options: dict[str, Any]) -> None:
    def events(*, versioned: bool) -> list[str]:
        handler = serving("openai_serving_chat", versioned=versioned, classes=TEMPLATED)
        return asyncio.run(collected(chat(handler, each(steps(num_choices)), n=num_choices, **options)))

    assert bare(events(versioned=True)) == bare(events(versioned=False))


def test_templates_are_used_at_all() -> None:
    """vLLM's generator gets only the first and the last result."""
    given: list[RequestOutput] = []

    async def run() -> list[str]:
        def build(results: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
            async def watched() -> AsyncIterator[Any]:
                async for item in results:
                    given.append(item[1])
                    yield item

            return completion(serving("openai_serving_completion", versioned=False), watched())

        items = [(0, result(output(0, [n], text="x"))) for n in range(50)] + [(0, result(output(0, [9], ("v", 0, 51))))]
        events = templated(
            each(items), lambda item: item, build, templates=ChunkTemplates("text"), finish=lambda first, result: str
        )
        return await collected(events)

    assert len(asyncio.run(run())) == 52  # and [DONE]
    assert [list(each.outputs[0].token_ids) for each in given] == [[0], [*range(1, 50), 9]]


@pytest.mark.parametrize("make", [completion, chat])
def test_an_error_in_the_middle_becomes_an_event(make: Any) -> None:
    name = "openai_serving_completion" if make is completion else "openai_serving_chat"
    plain = [result(output(0, [5], text="x")) for _ in range(5)]
    items = [(0, step) for step in plain] if make is completion else plain

    def events(*, versioned: bool) -> list[str]:
        return asyncio.run(
            collected(make(serving(name, versioned=versioned, classes=TEMPLATED), each(items, ValueError("broke"))))
        )

    assert bare(events(versioned=True)) == bare(events(versioned=False))
    assert "broke" in events(versioned=True)[-2]


def test_a_stream_that_is_given_up_ends_vllms_generator() -> None:
    ended: list[str] = []

    async def build(results: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
        try:
            async for item in results:
                yield f'data: {{"text":"{item.outputs[0].text}"}}\n\n'
        finally:
            ended.append("vllm's")

    async def source() -> AsyncGenerator[RequestOutput, None]:
        while True:
            yield result(output(0, [5], text="x"))

    async def run() -> None:
        results = source()
        events = templated(
            results, lambda item: (0, item), build, templates=ChunkTemplates("text"), finish=lambda first, result: str
        )
        assert [await anext(events) for _ in range(3)] == ['data: {"text":"x"}\n\n'] * 3
        await events.aclose()

    asyncio.run(run())
    assert ended == ["vllm's"]


def test_what_vllms_generator_itself_waits_for_is_waited_for() -> None:
    async def build(results: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
        async for item in results:
            await asyncio.sleep(0.001)
            yield item.outputs[0].text

    async def run() -> list[str]:
        items = [result(output(0, [5], text=text)) for text in "abc"]
        events = templated(
            each(items), lambda item: (0, item), build, templates=None, finish=lambda first, result: str.upper
        )
        return [event async for event in events]

    assert asyncio.run(run()) == ["A", "B", "C"]


def test_a_cancelled_wait_reaches_vllms_generator() -> None:
    seen: list[str] = []

    async def build(results: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
        async for _ in results:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            yield ""

    async def run() -> None:
        items = [result(output(0, [5]))]
        events = templated(each(items), lambda item: (0, item), build, templates=None, finish=lambda first, result: str)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0.05)

    asyncio.run(run())
    assert seen == ["cancelled"]


@pytest.mark.parametrize("make", [completion, chat])
def test_what_ends_a_stream_of_one_generation_is_one_piece(make: Any) -> None:
    """The last token, the usage and [DONE] are one write, so the client wakes up once."""

    async def run() -> list[str]:
        async def send(message: Any) -> None:
            raise AssertionError("nobody puts anything into the fast path's queue here")

        fast_path.current.set(fast_path.StreamFastPath(send))  # as an HTTP request has one
        name = "openai_serving_completion" if make is completion else "openai_serving_chat"
        ends = [result(output(0, [5], text="x")), result(output(0, [9], ("v1", 0, 2), text="end"))]
        handler = serving(name, classes=TEMPLATED)
        if make is completion:
            pieces = completion(handler, each([(0, step) for step in ends]), num_prompts=1, **USAGE)
        else:
            pieces = chat(handler, each(ends), **USAGE)
        return [piece async for piece in pieces]

    *_, first, last = asyncio.run(run())
    assert '"x"' in first
    assert [kind in last for kind in ('"end"', '"weight_versions":[', '"usage":{', "[DONE]")] == [True] * 4


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("make", [completion, chat])
def test_without_the_fast_path_every_byte_is_the_same(make: Any, options: dict[str, Any]) -> None:
    """`weight_versions`, too; only the clock may differ."""
    if make is chat and "echo" in options:
        return
    name = "openai_serving_completion" if make is completion else "openai_serving_chat"
    items = [(0, step) for step in steps(2)] if make is completion else steps(2)

    def events(classes: Any) -> str:
        fresh = [copy.deepcopy(item) for item in items]  # restored tokens go into the results
        text = "".join(asyncio.run(collected(make(serving(name, classes=classes), each(fresh), n=2, **options))))
        return re.sub(r'"created":\d+', "", text)

    assert events(TEMPLATED) == events(VERSIONED)
    assert '"weight_versions":[' in events(VERSIONED)
