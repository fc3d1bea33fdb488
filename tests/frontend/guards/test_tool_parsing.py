"""openai_frontend/guards/tool_parsing.py on vLLM's parsers: what is streamed is what is answered whole."""

import json
from functools import cache
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
from vllm.exceptions import VLLMValidationError
from vllm.parser.abstract_parser import Parser
from vllm.parser.parser_manager import ParserManager

from openai_frontend.guards.tool_parsing import ANY_OBJECT, guarded, with_objects
from openai_frontend.vllm_seam import ChatCompletionRequest

MARK = "<tool_call>"
CALL = f'{MARK}\n{{"name": "get_weather", "arguments": {{"city": "Par\\"is {{é}}", "unit": "c"}}}}\n</tool_call>'
REQUIRED = '[{"name": "get_weather", "parameters": {"city": "Paris", "unit": "c"}}, {"name": "now", "parameters": {}}]'
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Any) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


TOOLS = [ChatCompletionToolsParam(function={"name": name}) for name in ("get_weather", "now")]


def request(choice: Any = "auto", parameters: Any = None, *, strict: bool | None = None) -> ChatCompletionRequest:
    function = {"name": "get_weather", "parameters": parameters, "strict": strict}
    now = {"type": "function", "function": {"name": "now"}}
    return ChatCompletionRequest(
        messages=[{"role": "user", "content": "x"}],
        tools=[{"type": "function", "function": function}, now],
        tool_choice=choice,
    )


@cache
def guarded_class(name: str) -> Any:
    return guarded(ParserManager.get_parser(tool_parser_name=name, enable_auto_tools=True))


def parser(tokenizer: Any, name: str = "hermes") -> Any:
    return guarded_class(name)(tokenizer, TOOLS)


def whole(tokenizer: Any, text: str, asked: ChatCompletionRequest, name: str = "hermes") -> tuple[str, list[Any]]:
    _, content, calls = parser(tokenizer, name).parse(text, asked, enable_auto_tools=True)
    return content or "", [(call.name, call.arguments) for call in calls or []]


def streamed(tokenizer: Any, text: str, asked: ChatCompletionRequest, name: str = "hermes") -> tuple[str, list[Any]]:
    """In pieces of the tokenizer's making, as in a stream."""
    each, content, calls = parser(tokenizer, name), "", {}
    ids = tokenizer.encode(text, add_special_tokens=False)
    ends = [len(tokenizer.decode(ids[: end + 1])) for end in range(len(ids))]
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends[:-1], len(text)], strict=False)]
    for index, piece in enumerate(pieces):
        delta = each.parse_delta(piece, [ids[index]], asked, [1], finished=index == len(pieces) - 1)
        if delta is None:
            continue
        content += delta.content or ""
        for call in delta.tool_calls:
            name_, arguments = calls.setdefault(call.index, ("", ""))
            calls[call.index] = (name_ + (call.function.name or ""), arguments + (call.function.arguments or ""))
    return content, list(calls.values())


def alike(calls: list[Any]) -> list[Any]:
    """Complete arguments compared as objects: a whole answer writes them anew."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return [(name, value(arguments)) for name, arguments in calls]


@pytest.mark.row(47)
@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
def test_a_call_cut_anywhere_is_the_same_whole_and_streamed(tokenizer: Any, choice: Any) -> None:
    asked = request(choice)
    for text in (f"Sure. {CALL}", f"{CALL}\n{CALL}") if choice == "auto" else (CALL,):
        for end in range(1, len(text) + 1):
            cut = text[:end]
            content, calls = whole(tokenizer, cut, asked)
            streamed_content, streamed_calls = streamed(tokenizer, cut, asked)
            assert (content, alike(calls)) == (streamed_content, alike(streamed_calls)), cut
            assert "tool_call" not in content, cut
            assert ("get_weather", "{}") not in calls, cut


@pytest.mark.row(47)
def test_a_required_call_of_a_parser_without_structural_tags_is_the_same_too(tokenizer: Any) -> None:
    asked = request("required")
    for end in range(1, len(REQUIRED) + 1):
        content, calls = whole(tokenizer, REQUIRED[:end], asked, "pythonic")
        assert (content, alike(calls)) == ("", alike(streamed(tokenizer, REQUIRED[:end], asked, "pythonic")[1]))


@pytest.mark.parametrize("text", ["It is 3 <", "a < b", "<", "<b>bold</b>", "plain"])
def test_a_text_that_only_looks_like_the_beginning_of_a_call_is_kept(tokenizer: Any, text: str) -> None:
    assert whole(tokenizer, text, request()) == streamed(tokenizer, text, request()) == (text, [])


def test_without_tools_or_with_none_markup_is_text(tokenizer: Any) -> None:
    assert whole(tokenizer, CALL[:30], request("none")) == (CALL[:30], [])
    assert streamed(tokenizer, CALL[:30], request("none")) == (CALL[:30], [])


def schemas(asked: ChatCompletionRequest) -> list[Any]:
    assert asked.structured_outputs is not None
    found: list[Any] = []

    def visit(node: Any) -> None:
        for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            visit(each)
        if isinstance(node, dict) and node.get("type") == "json_schema":
            found.append(node["json_schema"])

    visit(json.loads(asked.structured_outputs.structural_tag or "{}"))
    assert found
    return found


@pytest.mark.row(47)
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_arguments_of_a_forced_call_are_an_object(tokenizer: Any, choice: Any) -> None:
    loose = parser(tokenizer).adjust_request(request(choice, {"type": "object", "properties": {"a": {}}}))
    assert all(schema == ANY_OBJECT for schema in schemas(loose))
    strict = parser(tokenizer).adjust_request(request("required", {"properties": {"a": {}}}, strict=True))
    assert {"type": "object", "properties": {"a": {}}} in schemas(strict)


def test_a_function_whose_parameters_are_no_object_is_refused_if_it_is_forced(tokenizer: Any) -> None:
    with pytest.raises(VLLMValidationError, match=r"tools\[0\].function.parameters: type must be 'object'"):
        parser(tokenizer).adjust_request(request("required", {"type": "string"}))
    parser(tokenizer).adjust_request(request("auto", {"type": "string"}))


def test_a_schema_that_says_what_it_takes_in_another_way_stays() -> None:
    tag = {"type": "json_schema", "json_schema": {"anyOf": [{"type": "object"}]}}
    assert with_objects([{"content": tag}]) == [{"content": tag}]


def test_other_parsers_stay() -> None:
    class Other(Parser):
        pass

    assert guarded(Other) is Other
    assert guarded(None) is None
