"""Checks of an answer itself. Equality with vLLM's answer is not enough, because both servers can be wrong."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import jsonschema

from bench.parity.recording import Answer, Recording
from bench.parity.shape import Shape
from bench.parity.shapes.structured import PERSON

Message = dict[str, Any]
"""`content`, `tool_calls` (a list of `{"name", "arguments"}`) and `finish_reason` of one choice."""


def failures(recording: Recording, shapes: Iterable[Shape]) -> list[str]:
    """One line for every failed check of the answers."""
    lines = []
    for shape in shapes:
        answer = recording.get(shape.name, {})
        for name in shape.checks:
            problem = "no 200 answer" if answer.get("status") != 200 else CHECKS[name](shape, messages(answer))
            if problem:
                lines.append(f"{shape.name}: {name}: {problem}")
    return lines


def messages(answer: Answer) -> list[Message]:
    """The messages of a chat answer's choices. Those of a stream are assembled from its deltas."""
    if "events" not in answer:
        return [_message([choice["message"]], choice["finish_reason"]) for choice in answer["json"]["choices"]]
    deltas: dict[int, list[dict[str, Any]]] = {}
    reasons: dict[int, str] = {}
    for event in answer["events"]:
        for choice in event["data"].get("choices", []) if isinstance(event["data"], dict) else []:
            deltas.setdefault(choice["index"], []).append(choice["delta"])
            if choice.get("finish_reason"):
                reasons[choice["index"]] = choice["finish_reason"]
    return [_message(parts, reasons.get(index)) for index, parts in sorted(deltas.items())]


def _message(parts: list[dict[str, Any]], finish_reason: str | None) -> Message:
    calls: dict[int, dict[str, str]] = {}
    for part in parts:
        for position, call in enumerate(part.get("tool_calls") or []):
            joined = calls.setdefault(call.get("index", position), {"name": "", "arguments": ""})
            function = call.get("function") or {}
            joined["name"] += function.get("name") or ""
            joined["arguments"] += function.get("arguments") or ""
    content = "".join(part.get("content") or "" for part in parts)
    return {"content": content, "tool_calls": list(calls.values()), "finish_reason": finish_reason}


def calls_in_tool_calls(shape: Shape, found: list[Message]) -> str | None:
    """Each choice has a tool call in `tool_calls`, and none in its content."""
    for message in found:
        if not message["tool_calls"]:
            return f"no tool call, content {message['content']!r}"
        if message["content"].strip():
            return f"content beside the call: {message['content']!r}"
    return None


def arguments_validate(shape: Shape, found: list[Message]) -> str | None:
    """Each call names a tool of the request and its arguments validate against that tool's schema."""
    tools = shape.body["tools"] if isinstance(shape.body, dict) else []
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for call in (call for message in found for call in message["tool_calls"]):
        if call["name"] not in schemas:
            return f"no tool is called {call['name']!r}"
        problem = _violation(call["arguments"], schemas[call["name"]])
        if problem:
            return problem
    return None


def is_person(shape: Shape, found: list[Message]) -> str | None:
    """The content is JSON that validates against the requested schema."""
    return next(filter(None, (_violation(message["content"], PERSON) for message in found)), None)


def is_date(shape: Shape, found: list[Message]) -> str | None:
    """The content is a date: four, two and two digits."""
    bad = [m["content"] for m in found if [len(part) for part in m["content"].split("-")] != [4, 2, 2]]
    return f"not a date: {bad[0]!r}" if bad else None


def says_paris(shape: Shape, found: list[Message]) -> str | None:
    """The model knows the capital of France."""
    bad = [m["content"] for m in found if "Paris" not in m["content"]]
    return f"no Paris in {bad[0]!r}" if bad else None


def stops_by_itself(shape: Shape, found: list[Message]) -> str | None:
    """The model ended the answer before the token limit."""
    bad = [m["finish_reason"] for m in found if m["finish_reason"] != "stop"]
    return f"finish_reason {bad[0]!r}" if bad else None


def _violation(text: str, schema: dict[str, Any]) -> str | None:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        return f"{text!r}: {str(error).splitlines()[0]}"
    return None


CHECKS: dict[str, Callable[[Shape, list[Message]], str | None]] = {
    check.__name__: check
    for check in (calls_in_tool_calls, arguments_validate, is_person, is_date, says_paris, stops_by_itself)
}
