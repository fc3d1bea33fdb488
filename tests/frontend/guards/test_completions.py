"""openai_frontend/guards/completions.py on vLLM's own response builders, without an engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput

from openai_frontend.guards.completions import GuardedCompletion
from tests.frontend.streaming.test_weight_spans import Attributes

METADATA = RequestResponseMetadata(request_id="r")
INPUTS = [{"type": "token", "prompt_token_ids": [1, 2], "prompt": "P0"}, {"type": "token", "prompt_token_ids": [3]}]


class Serving(Attributes, GuardedCompletion):
    def __init__(self) -> None:
        self.model_config: Any = None

    def _extract_prompt_text(self, prompt: Any) -> Any:
        return prompt.get("prompt", "P1")


def result(prompt: str | None, ids: list[int], *outputs: CompletionOutput) -> RequestOutput:
    return RequestOutput("r", prompt, ids, None, list(outputs), finished=True)


def output(index: int, text: str, *ids: int) -> CompletionOutput:
    return CompletionOutput(index, text, list(ids), None, None, finish_reason="length")


def asked(**options: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": "x", "max_tokens": 9, "echo": True} | options)


def whole(request: CompletionRequest, results: list[RequestOutput]) -> Any:
    return Serving().request_output_to_completion_response(results, request, "cmpl-1", 0, "m", None, METADATA)


def streamed(request: CompletionRequest, items: list[tuple[int, RequestOutput]]) -> list[Any]:
    async def results() -> AsyncIterator[Any]:
        for item in items:
            yield item

    async def run() -> list[str]:
        stream = Serving().completion_stream_generator(
            request, INPUTS, results(), "cmpl-1", 0, "m", num_prompts=2, tokenizer=None, request_metadata=METADATA
        )
        return [event async for event in stream]

    events = asyncio.run(run())
    assert events[-1] == "data: [DONE]\n\n"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def texts(chunks: list[Any]) -> dict[int, str]:
    joined: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        joined[choice["index"]] = joined.get(choice["index"], "") + choice["text"]
    return joined


@pytest.mark.parametrize("return_token_ids", [True, False])
def test_an_echo_has_the_prompt_with_and_without_token_ids(return_token_ids: bool) -> None:
    request = asked(n=2, return_token_ids=return_token_ids)
    first, second = (output(0, "a", 7), output(1, "b", 8)), (output(0, "c", 9), output(1, "d", 9))
    response = whole(request, [result("P0", [1, 2], *first), result("P1", [3], *second)])
    assert [choice.text for choice in response.choices] == ["P0a", "P0b", "P1c", "P1d"]
    request = asked(n=2, return_token_ids=return_token_ids, stream=True)
    more = result(None, [1, 2], output(0, "+", 7), output(1, "+", 8))
    items = [(0, result("P0", [1, 2], *first)), (1, result(None, [3], *second)), (0, more)]
    assert texts(streamed(request, items)) == {0: "P0a+", 1: "P0b+", 2: "P1c", 3: "P1d"}


def test_an_echo_alone_counts_no_tokens_and_has_none() -> None:
    answers = [result("P0", [1, 2], output(0, "a", 7)), result("P1", [3], output(0, "b", 8))]
    for ids in (True, False):
        response = whole(asked(max_tokens=0, return_token_ids=ids), answers)
        assert [(choice.text, choice.token_ids) for choice in response.choices] == [
            ("P0", [] if ids else None),
            ("P1", [] if ids else None),
        ]
        assert (response.usage.completion_tokens, response.usage.total_tokens) == (0, 3)
        options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        chunks = streamed(asked(max_tokens=0, return_token_ids=ids, **options), list(enumerate(answers)))
        assert texts(chunks) == {0: "P0", 1: "P1"}
        assert {chunk["usage"]["completion_tokens"] for chunk in chunks} == {0}
        assert chunks[-1]["usage"]["total_tokens"] == 3


def test_top_logprobs_have_the_sampled_token_even_if_another_has_its_text() -> None:
    row = {7: Logprob(-0.5, 1, "�"), 8: Logprob(-2.0, 2, "�"), 9: Logprob(-3.0, 3, "x")}
    logprobs = Serving()._create_completion_logprobs([7], [row], 2, None)
    assert logprobs.top_logprobs == [{"�": -0.5, "x": -3.0}]
    assert Serving()._create_completion_logprobs([7], [row], 0, None).top_logprobs == [{"�": -0.5}]


def test_a_stream_without_echo_is_vllms_own() -> None:
    nothing: Any = None
    stream: Any = Serving().completion_stream_generator(asked(echo=False), [], nothing, "r", 0, "m", 1, None, METADATA)
    assert stream.__qualname__ == "OpenAIServingCompletion.completion_stream_generator"
