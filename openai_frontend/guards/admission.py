"""A stream whose request is refused before its first token is answered with the error's status.

vLLM sends the headers of a stream, 200, before its engine has seen the request. A refusal then comes as an event in
the stream, which many clients do not look for (StreamingResponse in each of vLLM 0.32's routers). Here the start of
an event stream waits until the engine has answered. Unnecessary once vLLM starts a stream at its first output.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_frontend.vllm_seam import RequestOutputCollector

EVENTS = b"text/event-stream"
# An event stream that asks nothing of the engine is held no longer than for these.
MAX_HELD = 16
AnswerError = Callable[[Request, Exception], Awaitable[Response]]

# The admission of the HTTP request that is being handled.
current: ContextVar["Admission | None"] = ContextVar("admission", default=None)


class Admission:
    """Whether the engine has answered an HTTP request: with an output, or with an error before any output."""

    def __init__(self) -> None:
        self.is_open = False
        self.error: Exception | None = None

    def watch(self, queue: RequestOutputCollector) -> None:
        """A generation of the request puts its results into `queue`: the first one is the answer."""
        if isinstance(queue.output, Exception):
            self.refuse(queue.output)
            return
        if queue.output is not None:
            self.is_open = True
            return
        put = queue.put

        def put_first(output: Any) -> None:
            del queue.put  # later results go the usual way, without a check
            if isinstance(output, Exception):
                self.refuse(output)
            else:
                self.is_open = True
            put(output)

        queue.put = put_first

    def refuse(self, error: Exception) -> None:
        """Note the error of a request of which nothing was answered."""
        if not self.is_open and self.error is None:
            self.error = error


class HeldStart:
    """The `send` of one HTTP request, which holds the start of an event stream."""

    def __init__(self, admission: Admission, send: Send, answer: Callable[[Exception], Awaitable[None]]) -> None:
        self._admission = admission
        self._send = send
        self._answer = answer
        self._held: list[Message] = []
        self._is_held = False
        self._is_answered = False

    async def __call__(self, message: Message) -> None:
        if self._is_answered:
            return  # the rest of a stream that was replaced
        if message["type"] == "http.response.start":
            self._is_held = is_event_stream(message) and not self._admission.is_open
        if not self._is_held:
            await self._send(message)
            return
        self._held.append(message)
        if await self.replace():
            return
        if self._admission.is_open or len(self._held) > MAX_HELD or is_last(message):
            self._is_held = False
            for held in self._held:
                await self._send(held)

    async def replace(self) -> bool:
        """Whether a stream of which nothing was sent was refused: then answer with the reason instead."""
        if self._is_held and not self._is_answered and self._admission.error is not None:
            self._is_answered = True
            await self._answer(self._admission.error)
        return self._is_answered


class AdmissionMiddleware:
    """Holds the start of each event stream until its request is admitted.

    `answer_error` makes the response of a refused one, as the app's handler of exceptions does.
    """

    def __init__(self, app: ASGIApp, answer_error: AnswerError) -> None:
        self.app = app
        self._answer_error = answer_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        admission = Admission()
        current.set(admission)

        async def answer(error: Exception) -> None:
            response = await self._answer_error(Request(scope, receive), error)
            await response(scope, receive, send)

        held = HeldStart(admission, send, answer)
        try:
            await self.app(scope, receive, held)
        except Exception:
            if not await held.replace():  # the app does not answer an error of a stream that it has started
                raise


def is_event_stream(start: Message) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(EVENTS) for name, value in start["headers"])


def is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)
