"""A response ends when its client has gone, without a task that waits for that.

Starlette runs a second task beside each stream, which reads the connection until the client disconnects, unless the
server says that it speaks ASGI 2.4: then its `send` raises OSError for a client that has gone. uvicorn 0.54 says 2.3. A
stream that waits for its first token sends nothing, so here the connection itself (connection.py) tells.
"""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ON_LOST = "on_lost"
"""Key of a request's state: a function that gets what is to be called when the connection is lost."""
WITHOUT_A_WATCHER = {"version": "3.0", "spec_version": "2.4"}

OnLost = Callable[[Callable[[], None]], None]


class Answering:
    """The `send` of one HTTP request, which notes the task that answers it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._task: asyncio.Task[object] | None = None
        self.is_lost = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._task = asyncio.current_task()
            if self.is_lost and self._task is not None:  # while the request was handled
                self._task.cancel()
        elif not message.get("more_body", False):
            self._task = None  # what it does after its answer is not for the client
        await self._send(message)

    def lose(self) -> None:
        """The client has gone. A handler that has no answer yet hears of it from `receive`."""
        self.is_lost = True
        if self._task is not None:
            self._task.cancel()


class DisconnectMiddleware:
    """Cancels the task that answers a request whose client has gone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        on_lost: OnLost | None = scope.get("state", {}).get(ON_LOST)
        if on_lost is None:  # another server than ours
            await self.app(scope, receive, send)
            return
        scope["asgi"] = WITHOUT_A_WATCHER
        answering = Answering(send)
        on_lost(answering.lose)
        try:
            await self.app(scope, receive, answering)
        except asyncio.CancelledError:
            if not answering.is_lost:
                raise
