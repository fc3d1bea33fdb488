"""Measures a streamed answer while its bytes arrive: time to the first token, gaps between tokens, usage."""

import json
from dataclasses import dataclass, field
from typing import Any


class StreamError(RuntimeError):
    """The stream carried an error event, or ended without its usage."""


@dataclass
class StreamMeter:
    """Measures one stream. `feed` takes the bytes from the socket.

    It parses as little of an event as possible, so that measuring costs little. The number of tokens is the server's
    own count in the last event (`stream_options.include_usage`), because a server may send fewer events than tokens.

    Args:
        started: time at which the request was sent, in seconds, on the same clock as `now` of `feed`.
    """

    started: float
    gaps: list[float] = field(default_factory=list)
    """Seconds between successive events with tokens; 0 between two that arrived together."""
    ttft: float | None = None
    """Seconds to the first event with tokens."""
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
            # Skips `[DONE]` and comments, which keep the connection alive.
            if not event.startswith(b"data: {"):
                continue
            self._last_event = event
            # A chat's first event has the role and no token. The last event has the usage and no choices.
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
