"""Server-sent events of the OpenAI routes as objects, for guards that change them."""

import json
from typing import Any

PREFIX = "data: "


def parse(event: str) -> dict[str, Any] | None:
    """The object of an event; None for `[DONE]`."""
    return json.loads(event.removeprefix(PREFIX)) if event.startswith(PREFIX + "{") else None


def render(chunk: dict[str, Any]) -> str:
    return f"{PREFIX}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
