"""Server-sent events of the OpenAI API: `data:` lines, a blank line after each event, `[DONE]` at the end."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DONE = "[DONE]"


@dataclass(frozen=True)
class Event:
    """One event: its optional `event:` name and the text of its `data:` lines."""

    name: str | None
    data: str

    def value(self) -> Any:
        """The parsed data if it is JSON, else the text (for example `[DONE]`)."""
        try:
            return json.loads(self.data)
        except json.JSONDecodeError:
            return self.data


def parse_events(text: str) -> Iterator[Event]:
    """All events of a complete response body, in order. Comments (keep-alives) are omitted."""
    for block in text.replace("\r\n", "\n").split("\n\n"):
        name, data = None, []
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
            elif field == "event":
                name = value.removeprefix(" ")
        if data:
            yield Event(name, "\n".join(data))
