"""The events of a stream, made comparable.

Two things about a stream are chance in vLLM itself, as two recordings of one server show. With n > 1 the choices are
sampled side by side, and whose event comes first varies: events are compared choice by choice. And a token that is
ready before its predecessor has been sent goes out in the same event: streams that differ in where events end are
compared with the events of each choice put together, as a client would.
"""

from typing import Any

Events = list[dict[str, Any]]

FEWEST_EVENTS = 0.75
"""A stream may have as few as this share of the other's events, or two fewer, before its chunking is a difference."""

JOINED_TEXT = {"arguments", "content", "reasoning", "reasoning_content", "text"}
"""Strings that come in pieces."""


def comparable(left: Events, right: Events) -> tuple[Any, Any]:
    """Both streams in the strictest form in which they may be compared: event by event, or put together."""
    if len(left) == len(right) or not is_same_pace(len(left), len(right)):
        return in_order(left), in_order(right)
    return put_together(left), put_together(right)


def is_same_pace(left: int, right: int) -> bool:
    """Whether two numbers of events are near enough for chance to explain the difference."""
    return min(left, right) >= min(max(left, right) * FEWEST_EVENTS, max(left, right) - 2)


def in_order(events: Events) -> Events | dict[str, Events]:
    """The events as they are; with several choices, one list per choice (`choice0` …), and `rest` for the others."""
    groups = by_choice(events)
    return groups if len(groups.keys() - {"rest"}) > 1 else events


def by_choice(events: Events) -> dict[str, Events]:
    """The events of each choice, and under `rest` those that belong to none: usage, errors, `[DONE]`."""
    groups: dict[str, Events] = {}
    for event in events:
        groups.setdefault(_choice_of(event["data"]), []).append(event)
    return groups


def put_together(events: Events) -> dict[str, Any]:
    """Each choice's events as one: texts and lists joined, of everything else the last value; `rest` as it is."""
    groups = by_choice(events)
    rest = {"rest": groups.pop("rest", [])}
    return {name: _joined([event["data"] for event in group]) for name, group in groups.items()} | rest


def _choice_of(data: Any) -> str:
    choices = data.get("choices") if isinstance(data, dict) else None
    return f"choice{choices[0]['index']}" if choices else "rest"


def _joined(values: list[Any]) -> Any:
    merged: Any = None
    for value in values:
        merged = _join(merged, value)
    return merged


def _join(left: Any, right: Any, key: str | None = None) -> Any:
    if left is None or left == "":
        return right
    if right is None or right == "":
        return left
    if isinstance(left, dict) and isinstance(right, dict):
        # A key whose value is null or empty says nothing, whichever event it stands in.
        return {name: _join(left.get(name), right.get(name), name) for name in sorted(left.keys() | right.keys())}
    if isinstance(left, list) and isinstance(right, list):
        return _join_indexed(left, right) if key in {"choices", "tool_calls"} else left + right
    if isinstance(left, str) and isinstance(right, str) and key in JOINED_TEXT:
        return left + right
    return right


def _join_indexed(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> list[dict[str, Any]]:
    merged: dict[int, Any] = {}
    for part in (*left, *right):
        merged[part.get("index", 0)] = _join(merged.get(part.get("index", 0)), part)
    return [merged[index] for index in sorted(merged)]
