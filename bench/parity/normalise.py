"""What may differ between two answers to the same request: ids, times and hashes.

Nothing is thrown away: a random id becomes `chatcmpl-*`, so its prefix is still compared, and a time becomes `<time>`,
so that it must be there and be a number.
"""

import re
from typing import Any

ID_KEYS = {"call_id", "id", "item_id", "request_id", "system_fingerprint", "tool_call_id"}
"""Keys whose value is random, or a hash of the whole configuration (`system_fingerprint`)."""

TIME_KEYS = {"completed_at", "created", "created_at"}
"""Keys whose value is the time of day, in seconds."""

RANDOM = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*")


def normalise(value: Any, key: str | None = None) -> Any:
    """`value` with ids and times replaced, at any depth; `key` is the key it stands under."""
    if isinstance(value, dict):
        return {name: normalise(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [normalise(inner, key) for inner in value]
    if key in ID_KEYS and isinstance(value, str):
        return RANDOM.sub("*", value)
    if key in TIME_KEYS and isinstance(value, int | float) and not isinstance(value, bool):
        return "<time>"
    return value
