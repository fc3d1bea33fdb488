"""Replaces the parts of an answer that may differ: ids, times, hashes, and the one field that tritonlive adds.

No field of vLLM's is removed. A random id becomes `chatcmpl-*`, so its prefix is still compared. A time becomes
`<time>`, so it must be present and be a number.
"""

import re
from typing import Any

ID_KEYS = {"call_id", "id", "item_id", "request_id", "system_fingerprint", "tool_call_id"}
"""Keys with a random value, or with a hash of the whole configuration (`system_fingerprint`)."""

TIME_KEYS = {"completed_at", "created", "created_at"}
"""Keys whose value is a Unix time in seconds."""

ADDED = "weight_versions"
"""The field that tritonlive adds to every choice of the routes in `ADDED_ON` (weight_spans.py)."""

ADDED_ON = {"/v1/completions", "/v1/chat/completions", "/v1/chat/completions/batch", "/invocations"}
"""Routes on which tritonlive adds it. On /inference/v1/generate the field is vLLM's own and is compared."""

MESSAGE_KEY = "message"
"""Key of an error's text. vLLM's Rust front end writes request ids into it, and a range's fields in any order."""
ID_IN_TEXT = re.compile(r"\b((?:chat)?cmpl)-[0-9a-f]{8}\b")
FIELDS_IN_TEXT = re.compile(r"(?<=\[\{)[^{}]*(?=\}\])")

RANDOM = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*")


def normalise(value: Any, key: str | None = None) -> Any:
    """`value` with ids and times replaced at any depth. `key` is the key of the value itself."""
    if isinstance(value, dict):
        return {name: normalise(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [normalise(inner, key) for inner in value]
    if key in ID_KEYS and isinstance(value, str):
        return RANDOM.sub("*", value)
    if key == MESSAGE_KEY and isinstance(value, str):
        return FIELDS_IN_TEXT.sub(_in_order, ID_IN_TEXT.sub(r"\1-*", value))
    if key in TIME_KEYS and isinstance(value, int | float) and not isinstance(value, bool):
        return "<time>"
    return value


def _in_order(fields: re.Match[str]) -> str:
    return ", ".join(sorted(fields[0].split(", ")))


def without_added(answer: dict[str, Any], route: str) -> dict[str, Any]:
    """A recorded answer without the spans in its choices, in the body or in a stream's events.

    Only valid spans in choices are removed. Any other value under that name stays and counts as a difference.
    """
    if route.partition("?")[0] not in ADDED_ON:
        return answer
    answer = dict(answer)
    if "json" in answer:
        answer["json"] = _without_spans(answer["json"])
    if "events" in answer:
        answer["events"] = [{**event, "data": _without_spans(event["data"])} for event in answer["events"]]
    return answer


def _without_spans(body: Any) -> Any:
    if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
        return body
    choices = [
        {name: value for name, value in choice.items() if name != ADDED or not _is_spans(value)}
        for choice in body["choices"]
    ]
    return {**body, "choices": choices}


def _is_spans(value: Any) -> bool:
    """Whether the value is null (vLLM does not know) or a list of contiguous spans from the first token on."""
    if value is None:
        return True
    if not isinstance(value, list) or not all(isinstance(span, dict) for span in value):
        return False
    if any(span.keys() != {"version", "start", "end"} for span in value):
        return False
    ends = [0, *(span["end"] for span in value)]
    return all(span["start"] == end for span, end in zip(value, ends, strict=False))
