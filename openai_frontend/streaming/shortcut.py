"""A stream's plain tokens go from vLLM's output processor straight to the server's `send`.

On the regular way each token of each stream wakes up a task, and goes through a queue, four generators and the senders
of six middlewares, all of which hand it on as it is. That costs more than making the token's text. The way is short
only while there is nothing else on it: the stream's task waits for its next result, all before it has been sent, and
the client takes what is sent. Whatever else comes takes the regular way, and tokens after it, too, until all of it has
gone.
"""

from contextvars import ContextVar
from typing import Any

from fastapi import FastAPI
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.outputs import RequestOutput

from openai_frontend.streaming.stamps import Stamps
from openai_frontend.vllm_seam import RequestOutputCollector, ScalingMiddleware, XRequestIdMiddleware

# These hand a stream's events on as they are, and at once.
TRANSPARENT = frozenset({CORSMiddleware, PrometheusInstrumentatorMiddleware, ScalingMiddleware, XRequestIdMiddleware})
# Of the HTTP request at hand.
current: ContextVar["Shortcut | None"] = ContextVar("shortcut", default=None)


class Shortcut:
    """One for each HTTP request; open between `open` and `shut`, and only if the request has one generation."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._queue: RequestOutputCollector | None = None
        self._is_usable = True
        self._stamps: Stamps | None = None  # while it is open

    def watch(self, queue: RequestOutputCollector) -> None:
        """A generation of the request puts its results into `queue`."""
        if self._queue is not None:
            self._is_usable = False
            self.shut()
        self._queue = queue
        shortened: Any = queue
        shortened.__class__ = Queue
        shortened.shortcut = self

    def open(self, stamps: Stamps) -> None:
        """The stream's task waits for the next result; what came before has been sent, or waits in the queue."""
        if self._is_usable and self._queue is not None and self._queue.output is None:
            self._stamps = stamps

    def shut(self) -> None:
        self._stamps = None

    def take(self, result: Any) -> bool:
        """Whether `result` was sent here; if not, it has to go the regular way."""
        if self._stamps is None or not isinstance(result, RequestOutput):
            return False
        events = self._stamps.make(0, result)
        if events is None:
            return False
        message = {"type": "http.response.body", "body": "".join(events).encode(), "more_body": True}
        if not send_at_once(self._send, message):
            return False
        self._stamps.skip(0, result)
        return True


class Queue(RequestOutputCollector):
    """A generation's queue that a shortcut goes around."""

    shortcut: Shortcut

    def put(self, output: Any) -> None:
        if self.shortcut.take(output):
            return
        self.shortcut.shut()
        super().put(output)


def send_at_once(send: Send, message: Message) -> bool:
    """Whether `message` was sent; it was not if that means to wait, as it does while the client does not read."""
    sending: Any = send(message)
    try:
        sending.send(None)
    except StopIteration:
        return True
    sending.close()
    return False


class Shortcuts:
    """The outermost app: what it is given as `send` is the server's own.

    Only over an app that `is_transparent`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            current.set(Shortcut(send))
        await self.app(scope, receive, send)


def is_transparent(app: FastAPI) -> bool:
    """Whether no middleware may want to see a stream's events, or have some on the way, as BaseHTTPMiddleware has."""
    return all(middleware.cls in TRANSPARENT for middleware in app.user_middleware)
