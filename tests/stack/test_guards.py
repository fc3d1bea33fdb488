"""What vLLM does wrong and is refused or mended in front of it (openai_frontend/guards), on the running stack."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from .conftest import MODEL

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
CALL = r'<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "Par\\"is \{é\}"\}\}\n</tool_call>'
COMPLETE = {"city": 'Par"is {é}'}
SHORT = {"max_tokens": 2}
BODIES = {
    "/v1/chat/completions": {"messages": QUESTION, **SHORT},
    "/v1/chat/completions/batch": {"messages": [QUESTION], **SHORT},
    "/v1/completions": {"prompt": "Hi", **SHORT},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": QUESTION, **SHORT},
    "/v1/messages/count_tokens": {"messages": QUESTION},
    "/invocations": {"prompt": "Hi", **SHORT},
    "/tokenize": {"prompt": "Hi"},
    "/generate/": {"prompts": ["Hi"], **SHORT},
    "/chat/": {"messages": [QUESTION], **SHORT},
}


@pytest.fixture(autouse=True)
def healthy_afterwards(openai: OpenAI) -> Iterator[None]:
    yield
    assert openai.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2).choices


def chat(openai: OpenAI, **options: Any) -> tuple[Any, Any]:
    """The same request answered whole and streamed: each as (content, [(name, arguments)], finish_reason)."""
    common: Any = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, "temperature": 0, **options}
    choice = openai.chat.completions.create(**common).choices[0]
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    content, streamed, reason = "", {}, None
    for chunk in openai.chat.completions.create(**common, stream=True):
        content += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
        for call in chunk.choices[0].delta.tool_calls or []:
            function: Any = call.function
            name, arguments = streamed.setdefault(call.index, ("", ""))
            streamed[call.index] = (name + (function.name or ""), arguments + (function.arguments or ""))
    whole = (choice.message.content or "", calls, choice.finish_reason)
    return whole, (content, list(streamed.values()), reason)


@pytest.mark.row(46)
@pytest.mark.parametrize("path", BODIES)
def test_a_misspelt_field_is_refused_on_every_route(frontend: httpx.Client, path: str) -> None:
    body = BODIES[path] if path in ("/generate/", "/chat/") else {"model": MODEL, **BODIES[path]}
    assert frontend.post(path, json=body).status_code == 200
    answer = frontend.post(path, json={**body, "temprature": 0.1})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("temprature: unknown field")


@pytest.mark.row(46)
def test_what_the_sdk_sends_for_accounting_is_harmless(openai: OpenAI) -> None:
    harmless: Any = {"user": "u", "metadata": {"a": "b"}, "store": True, "safety_identifier": "s"}
    more: Any = {"service_tier": "auto", "prompt_cache_key": "k"}
    plain = openai.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=4)
    same = openai.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=4, **harmless, **more
    )
    assert same.choices[0].message.content == plain.choices[0].message.content


@pytest.mark.row(46)
@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("guided_regex", {"guided_regex": "[0-9]"}),
        ("max_completion_tokens", {"max_completion_tokens": 3}),
        ("stop", {"use_beam_search": True, "n": 2, "stop": ["x"]}),
        ("structured_outputs.whitespace_pattern", {"structured_outputs": {"json": {}, "whitespace_pattern": " "}}),
        ("stream_options.include_usge", {"stream": True, "stream_options": {"include_usge": True}}),
    ],
)
def test_a_field_that_would_be_ignored_is_named(frontend: httpx.Client, field: str, options: Any) -> None:
    answer = frontend.post("/v1/completions", json={"model": MODEL, "prompt": "Hi", "max_tokens": 2, **options})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.row(47)
@pytest.mark.parametrize("max_tokens", [5, 10, 14, 18, 22, 26, 30, 36, 100])
def test_a_call_cut_short_is_the_same_whole_and_streamed(openai: OpenAI, max_tokens: int) -> None:
    structured: Any = {"structured_outputs": {"regex": CALL}}
    whole, streamed = chat(openai, max_tokens=max_tokens, extra_body=structured)
    content, calls, reason = whole
    assert content == streamed[0] == ""
    assert reason == streamed[2] == ("tool_calls" if max_tokens == 100 else "length")
    if max_tokens == 100:
        assert [json.loads(arguments) for each in (calls, streamed[1]) for _, arguments in each] == [COMPLETE, COMPLETE]
    else:
        assert calls == streamed[1]
        assert all(arguments != "{}" for _, arguments in calls)


@pytest.mark.row(47)
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_arguments_of_a_forced_call_are_an_object(openai: OpenAI, choice: Any) -> None:
    for whole_or_streamed in chat(openai, tool_choice=choice, max_tokens=40):
        content, ((name, arguments), *_), _ = whole_or_streamed
        assert (content, name, arguments[0]) == ("", "get_weather", "{")


@pytest.mark.row(47)
def test_a_required_call_that_a_stop_string_cuts_does_not_end_in_tool_calls(openai: OpenAI) -> None:
    whole, streamed = chat(openai, tool_choice="required", max_tokens=40, stop=['"arguments"'])
    assert whole == streamed == ("", [("get_weather", "")], "stop")


@pytest.mark.parametrize("prompt", ["The capital of France is", [504, 3575, 282, 4649, 314]])
@pytest.mark.parametrize("stream", [True, False])
def test_an_echo_with_token_ids_has_the_prompt(openai: OpenAI, prompt: Any, stream: bool) -> None:
    body: Any = {"return_token_ids": True}
    request: Any = {"model": MODEL, "prompt": prompt, "max_tokens": 3, "echo": True, "temperature": 0, "logprobs": 1}
    answers: Any = openai.completions.create(**request, stream=stream, extra_body=body)
    choices: list[Any] = [chunk.choices[0] for chunk in answers if chunk.choices] if stream else [answers.choices[0]]
    text = "".join(choice.text for choice in choices)
    assert text.startswith("The capital of France is")
    assert text == "".join(token for choice in choices for token in choice.logprobs.tokens)


def test_an_echo_alone_counts_no_tokens(openai: OpenAI) -> None:
    answer = openai.completions.create(model=MODEL, prompt="Hi there", max_tokens=0, echo=True)
    assert (answer.choices[0].text, answer.usage and answer.usage.completion_tokens) == ("Hi there", 0)


def test_responses_that_are_cut_short_say_so(openai: OpenAI) -> None:
    request: Any = {"model": MODEL, "input": "What is the capital of France?", "max_output_tokens": 3}
    whole: Any = openai.responses.create(**request)
    last: Any = list(openai.responses.create(**request, stream=True))[-1]
    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert response.output[-1].status == "incomplete"
    with pytest.raises(BadRequestError, match="VLLM_ENABLE_RESPONSES_API_STORE"):
        openai.responses.create(**request, previous_response_id=whole.id)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("change", "headers", "status", "kind"),
    [
        ({}, {"authorization": "Bearer wrong"}, 401, "authentication_error"),
        ({"model": "nope"}, {}, 404, "not_found_error"),
        ({"messages": "x"}, {}, 400, "invalid_request_error"),
        ({"messages": []}, {}, 400, "invalid_request_error"),
        ({"temprature": 1}, {}, 400, "invalid_request_error"),
    ],
)
def test_errors_of_anthropics_routes_have_anthropics_form(
    frontend: httpx.Client, path: str, change: Any, headers: Any, status: int, kind: str
) -> None:
    answer = frontend.post(path, json={"model": MODEL, **BODIES[path], **change}, headers=headers)
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["error"]["message"]


@pytest.mark.row(47)
def test_a_message_whose_call_is_cut_short_is_answered(frontend: httpx.Client) -> None:
    tool = {"name": "get_weather", "input_schema": PARAMETERS}
    body = {"model": MODEL, **BODIES["/v1/messages"], "tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 30}
    answer = frontend.post("/v1/messages", json=body).json()
    assert answer["stop_reason"] == "max_tokens"
    # How far the call gets depends on the weights, and so do the arguments of one that was complete before.
    for block in answer["content"]:
        if block["type"] == "tool_use":
            assert isinstance(block["input"], dict)
        else:
            assert (block["type"], block["text"]) == ("text", "")
