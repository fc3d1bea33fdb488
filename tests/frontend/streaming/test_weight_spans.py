"""openai_frontend/streaming/weight_spans.py on vLLM's own response builders, without an engine."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from inspect import signature
from typing import Any

import pytest
from starlette.datastructures import State
from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput, WeightVersionSpan

from openai_frontend.adapters import PUSHED_ID
from openai_frontend.streaming.weight_spans import VERSIONED, attach, label

METADATA = RequestResponseMetadata(request_id="r")
MESSAGES: Any = [{"role": "user", "content": "x"}]


def output(index: int, tokens: list[int], *spans: tuple[str, int, int], text: str = "é") -> CompletionOutput:
    """One that ends its choice if it has spans."""
    ended = [WeightVersionSpan(*span) for span in spans] or None
    return CompletionOutput(
        index, text, tokens, None, None, finish_reason="length" if ended else None, weight_versions=ended
    )


def result(*outputs: CompletionOutput) -> RequestOutput:
    finished = all(output.finish_reason is not None for output in outputs)
    return RequestOutput("r", "x", [1, 2], None, list(outputs), finished=finished)


# Two choices. The second ends first; the first ends alone in its step.
STEPS = [
    result(output(0, [5]), output(1, [6])),
    result(output(0, [5]), output(1, [6, 6], ("v1", 0, 3))),
    result(output(0, [7], ("v1", 0, 2), ("v2", 2, 3))),
]
EXPECTED = {
    0: [{"version": "v1", "start": 0, "end": 2}, {"version": "v2", "start": 2, "end": 3}],
    1: [{"version": "v1", "start": 0, "end": 3}],
}


class Attributes:
    """The settings that the builders read; all are off."""

    enable_force_include_usage = enable_prompt_tokens_details = enable_per_request_metrics = False
    enable_auto_tools = enable_log_outputs = _include_reasoning_tokens_details = False
    return_tokens_as_token_ids = system_fingerprint = parser_cls = request_logger = None
    response_role = "assistant"


def serving(name: str, *, versioned: bool = True, classes: Any = VERSIONED) -> Any:
    theirs, ours = classes[name]
    return type("Serving", (Attributes, ours if versioned else theirs), {"__init__": lambda self: None})()


async def results(steps: list[Any]) -> AsyncIterator[Any]:
    for step in steps:
        yield step


async def collected(events: AsyncGenerator[str, None]) -> list[str]:
    """Each by itself; several may come in one piece."""
    return [event + "\n\n" for event in "".join([piece async for piece in events]).split("\n\n")[:-1]]


def completion_stream(handler: Any, steps: list[tuple[int, RequestOutput]], **options: Any) -> list[str]:
    request = CompletionRequest(model="m", prompt="x", max_tokens=9, return_token_ids=True, stream=True, **options)
    stream = handler.completion_stream_generator(
        request, [{}, {}], results(steps), "cmpl-1", 0, "m", num_prompts=2, tokenizer=None, request_metadata=METADATA
    )
    return asyncio.run(collected(stream))


def chat_stream(handler: Any, steps: list[RequestOutput], **options: Any) -> list[str]:
    request = ChatCompletionRequest(model="m", messages=MESSAGES, return_token_ids=True, stream=True, **options)
    stream = handler.chat_completion_stream_generator(
        request, results(steps), "chatcmpl-1", "m", [], object(), METADATA
    )
    return asyncio.run(collected(stream))


def parsed(events: list[str]) -> list[Any]:
    return [json.loads(event.removeprefix("data: ")) for event in events if event != "data: [DONE]\n\n"]


def spans_by_choice(events: list[str]) -> dict[int, Any]:
    """Weight versions of the chunks with a finish reason; no other chunk may have any."""
    choices = [choice for chunk in parsed(events) for choice in chunk["choices"]]
    assert [bool(choice.get("finish_reason")) for choice in choices] == ["weight_versions" in each for each in choices]
    return {choice["index"]: choice["weight_versions"] for choice in choices if choice.get("finish_reason")}


def without_spans(events: list[str]) -> list[Any]:
    chunks = parsed(events)
    for chunk in chunks:
        chunk.pop("created")
        for choice in chunk["choices"]:
            choice.pop("weight_versions", None)
    return chunks


USAGE = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("options", [{}, USAGE])
def test_a_completion_stream_has_them_where_choices_end_and_is_else_the_same(options: dict[str, Any]) -> None:
    steps = [(prompt, step) for step in STEPS for prompt in (1, 0)]
    events = completion_stream(serving("openai_serving_completion"), steps, n=2, **options)
    assert spans_by_choice(events) == EXPECTED | {2 + index: each for index, each in EXPECTED.items()}
    plain = completion_stream(serving("openai_serving_completion", versioned=False), steps, n=2, **options)
    assert without_spans(events) == without_spans(plain)
    assert events[-1] == plain[-1] == "data: [DONE]\n\n"
    assert sum(event == other for event, other in zip(events, plain, strict=True)) == len(plain) - 4


@pytest.mark.parametrize("options", [{}, USAGE])
def test_a_chat_stream_has_them_where_choices_end_and_is_else_the_same(options: dict[str, Any]) -> None:
    events = chat_stream(serving("openai_serving_chat"), STEPS, n=2, **options)
    assert spans_by_choice(events) == EXPECTED
    plain = chat_stream(serving("openai_serving_chat", versioned=False), STEPS, n=2, **options)
    assert without_spans(events) == without_spans(plain)


def test_an_error_in_a_stream_is_passed_on() -> None:
    failed = output(0, [5], ("v1", 0, 1))
    failed.finish_reason = "error"
    events = completion_stream(serving("openai_serving_completion"), [(0, result(failed))])
    assert parsed(events)[0]["error"]["code"] == 500
    assert events[-1] == "data: [DONE]\n\n"


WHOLE = result(output(0, [5, 5, 7], ("v1", 0, 2), ("v2", 2, 3)), output(1, [6, 6, 6], ("v1", 0, 3)))


def test_a_whole_completion_has_them() -> None:
    request = CompletionRequest(model="m", prompt="x", n=2, max_tokens=9)
    build = serving("openai_serving_completion").request_output_to_completion_response
    choices = build([WHOLE, WHOLE], request, "cmpl-1", 0, "m", None, METADATA).model_dump()["choices"]
    assert [choice["weight_versions"] for choice in choices] == [EXPECTED[0], EXPECTED[1]] * 2


def test_a_whole_chat_has_them() -> None:
    request = ChatCompletionRequest(model="m", messages=MESSAGES, n=2)
    build = serving("openai_serving_chat").chat_completion_full_generator
    answer = asyncio.run(build(request, results([WHOLE]), "chatcmpl-1", "m", [], object(), METADATA))
    assert [choice["weight_versions"] for choice in answer.model_dump()["choices"]] == [EXPECTED[0], EXPECTED[1]]


def test_a_batch_of_chats_has_them() -> None:
    request = BatchChatCompletionRequest(model="m", messages=[MESSAGES, MESSAGES])
    build = serving("openai_serving_chat_batch").chat_completion_full_generator_batch
    generators = [results([result(WHOLE.outputs[0])]), results([result(output(0, [6, 6, 6], ("v1", 0, 3)))])]
    answer = asyncio.run(build(request, generators, "chatcmpl-1", "m", [[], []], object(), METADATA))
    assert [choice["weight_versions"] for choice in answer.model_dump()["choices"]] == [EXPECTED[0], EXPECTED[1]]


def test_what_a_pushed_adapter_made_names_its_version_and_nothing_else_does() -> None:
    def made_with(request: LoRARequest | None) -> RequestOutput:
        made = result(output(0, [5, 5, 7], ("v1", 0, 3)))
        made.lora_request = request
        return made

    pushed, on_disk = LoRARequest("mine@v2", PUSHED_ID, "pushed"), LoRARequest("on-disk", 1, "folder")
    request = CompletionRequest(model="m", prompt="x", max_tokens=9)
    build = serving("openai_serving_completion").request_output_to_completion_response
    results_of = [made_with(each) for each in (pushed, on_disk, None)]
    choices = build(results_of, request, "cmpl-1", 0, "m", None, METADATA).model_dump()["choices"]
    assert [choice.get("adapter_version", "absent") for choice in choices] == ["mine@v2", "absent", "absent"]
    (chunk, *_) = parsed(chat_stream(serving("openai_serving_chat"), [made_with(pushed)])[1:])
    assert chunk["choices"][0]["adapter_version"] == "mine@v2"


def test_where_vllm_does_not_know_it_is_null() -> None:
    request = ChatCompletionRequest(model="m", messages=MESSAGES)
    build = serving("openai_serving_chat").chat_completion_full_generator
    unknown = output(0, [5])
    answer = asyncio.run(build(request, results([result(unknown)]), "chatcmpl-1", "m", [], object(), METADATA))
    assert answer.model_dump()["choices"][0]["weight_versions"] is None


def test_the_arguments_that_are_read_have_their_places() -> None:
    """Subclasses name the first parameters and pass on all others. vLLM calls with these names and positions."""
    for name, method, first in (
        ("openai_serving_completion", "completion_stream_generator", ["request", "engine_inputs", "result_generator"]),
        ("openai_serving_completion", "request_output_to_completion_response", ["final_res_batch"]),
        ("openai_serving_chat", "chat_completion_stream_generator", ["request", "result_generator"]),
        ("openai_serving_chat", "chat_completion_full_generator", ["request", "result_generator"]),
        ("openai_serving_chat_batch", "chat_completion_full_generator_batch", ["request", "generators"]),
    ):
        theirs, ours = VERSIONED[name]
        assert list(signature(vars(theirs)[method]).parameters)[1 : len(first) + 1] == first
        assert list(signature(vars(ours)[method]).parameters)[1 : len(first) + 1] == first


def test_only_the_class_of_vllms_objects_changes() -> None:
    state = State({name: theirs.__new__(theirs) for name, (theirs, _) in VERSIONED.items()})
    objects = dict(vars(state)["_state"])
    attach(state)
    for name, (theirs, ours) in VERSIONED.items():
        assert getattr(state, name) is objects[name]
        assert isinstance(objects[name], ours)
        assert (
            not set(vars(ours))
            - {"__module__", "__doc__", "__firstlineno__", "__static_attributes__"}
            - set(vars(theirs))
        )


def test_another_serving_class_is_refused() -> None:
    state = State({name: OpenAIServingChat.__new__(OpenAIServingChat) for name in VERSIONED})
    with pytest.raises(TypeError, match="openai_serving_completion is a OpenAIServingChat"):
        attach(state)


@pytest.mark.parametrize("event", ["data: [DONE]\n\n", ": keep-alive\n\n", 'data: {"error": {}}\n\n'])
def test_what_is_no_chunk_is_left_alone(event: str) -> None:
    assert label(event, {0: {}}) == event
