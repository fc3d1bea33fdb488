"""Makes the events of two streams comparable.

Two properties of a stream vary by chance in vLLM itself, as two recordings of one server show. First, with n > 1 the
order of events of different choices varies, so events are compared per choice. Second, two tokens share an event if the
second is ready before the first is sent. If streams differ in this, each choice's events are joined before comparing.
"""

from typing import Any

Events = list[dict[str, Any]]

FEWEST_EVENTS = 0.75
"""Smallest accepted ratio of the two streams' numbers of events. A difference of two events is always accepted."""

JOINED_TEXT = {"arguments", "content", "reasoning", "reasoning_content", "text"}
"""Strings that are sent in pieces."""


def comparable(left: Events, right: Events) -> tuple[Any, Any]:
    """Both streams in comparable form: joined if chance explains different numbers of events, else event by event."""
    if len(left) == len(right) or not is_same_pace(len(left), len(right)):
        return in_order(left), in_order(right)
    return put_together(left), put_together(right)


def is_same_pace(left: int, right: int) -> bool:
    """Whether chance can explain the difference of two numbers of events."""
    return min(left, right) >= min(max(left, right) * FEWEST_EVENTS, max(left, right) - 2)


def in_order(events: Events) -> Events | dict[str, Events]:
    """The unchanged events. With several choices: one list per choice (`choice0` …) and `rest` for other events."""
    groups = by_choice(events)
    return groups if len(groups.keys() - {"rest"}) > 1 else events


def by_choice(events: Events) -> dict[str, Events]:
    """Events by choice. `rest` has those without a choice: usage, errors, `[DONE]`."""
    groups: dict[str, Events] = {}
    for event in events:
        groups.setdefault(_choice_of(event["data"]), []).append(event)
    return groups


def put_together(events: Events) -> dict[str, Any]:
    """Each choice's events joined into one: texts and lists are concatenated, other fields have their last value."""
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
        # Null and empty values carry no information, in any event.
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
