"""Limits the headers of a connection in size and time, and tells of the connection's loss and of a shutdown.

uvicorn 0.54 with httptools has no limit for headers (h11, which is slower, has `h11_max_incomplete_event_size`), and no
timeout for a request of which only a part arrives.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from openai_frontend.guards.disconnect import ON_LOST
from openai_frontend.guards.limits import Limits

ON_SHUTDOWN = "on_shutdown"
"""Key of the lifespan's state: a function that is called once the server stops taking connections."""


class Phase(Enum):
    """What the next byte from the client belongs to."""

    IDLE = "the next request"
    HEAD = "a request's first line or headers"
    BODY = "a request's body"


class HeadTooLarge(Exception):
    """Ends the parsing of a request."""


class GuardedConnection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._phase = Phase.IDLE
        self._head_size = 0
        self._head_timeout: asyncio.TimerHandle | None = None
        self._on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timeout()
        super().connection_lost(exc)
        if self._on_lost is not None:
            self._on_lost()

    def data_received(self, data: bytes) -> None:
        before = self._phase
        super().data_received(data)
        if self._phase is not Phase.HEAD or self.transport.is_closing():
            return
        self._expect_head()
        if before is Phase.HEAD:  # else part of `data` may be the end of a body
            self._head_size += len(data)
        if self._head_size > self._limits.max_header_size:
            self._refuse_head()

    def on_message_begin(self) -> None:
        self._phase, self._head_size = Phase.HEAD, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        if size > self._limits.max_header_size:
            self._head_size = size
            raise HeadTooLarge
        self._phase = Phase.BODY
        self._cancel_head_timeout()
        super().on_headers_complete()
        self.scope["state"][ON_LOST] = self._call_when_lost

    def on_message_complete(self) -> None:
        self._phase = Phase.IDLE
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called for what the parser refuses, and for HeadTooLarge."""
        if self._head_size > self._limits.max_header_size:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def shutdown(self) -> None:
        super().shutdown()
        if (on_shutdown := self.app_state.get(ON_SHUTDOWN)) is not None:
            on_shutdown()

    def _call_when_lost(self, on_lost: Callable[[], None]) -> None:
        """Call `on_lost` when the connection is lost, unless another request on it begins before."""
        self._on_lost = on_lost

    def _expect_head(self) -> None:
        if self._head_timeout is None:
            self._head_timeout = self.loop.call_later(self._limits.receive_timeout_s, self._head_is_late)

    def _cancel_head_timeout(self) -> None:
        if self._head_timeout is not None:
            self._head_timeout.cancel()
            self._head_timeout = None

    def _head_is_late(self) -> None:
        self._head_timeout = None
        if self._phase is not Phase.BODY and not self._is_answering():
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse_head(self) -> None:
        """Answer 431, unless an earlier request on the connection is still being answered, and close."""
        if not self._is_answering():
            body = (
                f"the headers are larger than {self._limits.max_header_size} bytes, the server's --max-header-size"
            ).encode()
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
        self.transport.close()


def connection_factory(limits: Limits) -> Callable[..., GuardedConnection]:
    """The class of connections for uvicorn's `http`, in a form that its worker processes can import."""
    return partial(GuardedConnection, limits=limits)
