"""A streamed answer, measured as its bytes arrive: when the first token came, the gaps between tokens, the usage."""

import json
from dataclasses import dataclass, field
from typing import Any


class StreamError(RuntimeError):
    """The stream carried an error event, or ended without its usage."""


@dataclass
class StreamMeter:
    """Feed it what the socket gives.

    It looks at no more of an event than it must, so that measuring costs little beside what is measured: the number of
    tokens is the server's own count in the last event (`stream_options.include_usage`), not the number of events, of
    which a server may make fewer than it has tokens.

    Args:
        started: when the request was sent, on the clock of the `now` given to `feed`, in seconds.
    """

    started: float
    gaps: list[float] = field(default_factory=list)
    """Seconds between successive events that carry tokens; 0 between two that arrived together."""
    ttft: float | None = None
    """Seconds to the first event that carries tokens."""
    _last_token: float = 0.0
    _last_event: bytes = b""
    _rest: bytes = b""

    def feed(self, chunk: bytes, now: float) -> None:
        """Take the bytes that arrived at `now`.

        Raises:
            StreamError: if they hold an error event.
        """
        *events, self._rest = (self._rest + chunk).split(b"\n\n")
        for event in events:
            if event.startswith((b'data: {"error"', b"event: error")):
                raise StreamError(event.decode(errors="replace"))
            # Neither `[DONE]` nor a comment that keeps the connection alive.
            if not event.startswith(b"data: {"):
                continue
            self._last_event = event
            # The first event of a chat names the role and carries no token; the last has no choices, only the usage.
            if b'"role":' not in event and b'"choices":[]' not in event:
                self._token(now)

    def _token(self, now: float) -> None:
        if self.ttft is None:
            self.ttft = now - self.started
        else:
            self.gaps.append(now - self._last_token)
        self._last_token = now

    def usage(self) -> dict[str, Any]:
        """The `usage` object at the end of the stream.

        Raises:
            StreamError: if the stream ended without one.
        """
        try:
            usage = json.loads(self._last_event.removeprefix(b"data: ")).get("usage")
        except json.JSONDecodeError as error:
            raise StreamError(f"the stream's last event is not JSON: {self._last_event[:200]!r}") from error
        if not usage:
            raise StreamError(f"the stream ended without usage: {self._last_event[:200]!r}")
        return usage
