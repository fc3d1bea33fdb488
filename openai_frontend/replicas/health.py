"""A front end's view of one replica's health."""

import logging
import time

# The server's own log: vLLM's imports raise the root logger's level, which would silence a logger of our own.
logger = logging.getLogger("uvicorn.error")

# The engine answers between two steps; a long prefill on a CPU is one step.
HEALTH_TIMEOUT_S = 10.0


class ReplicaHealth:
    """The reason why a replica cannot generate, and how long it has owed an answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._asked_at: float | None = None  # when the open question about its health was asked
        self.unavailable_reason: str | None = "not connected yet"
        """Why it cannot generate now, whatever its weights; None if it can."""

    @property
    def is_slow(self) -> bool:
        """Whether the answer has taken so long that another replica is the better choice."""
        return self._asked_at is not None and time.monotonic() - self._asked_at > HEALTH_TIMEOUT_S

    def ask(self) -> None:
        """A question about its health was sent."""
        self._asked_at = time.monotonic()

    def stop_asking(self) -> None:
        """The question was answered, or its answer is no longer awaited."""
        self._asked_at = None

    def note(self, unavailable_reason: str | None) -> None:
        """Keep the newest reason; each change is logged once."""
        if unavailable_reason == self.unavailable_reason:
            return
        if unavailable_reason is None:
            logger.info("the replica %s can generate", self._url)
        else:
            logger.warning("the replica %s cannot generate: %s", self._url, unavailable_reason)
        self.unavailable_reason = unavailable_reason
