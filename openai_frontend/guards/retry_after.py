"""Adds Retry-After to every 503.

RFC 9110 lets clients read there when to come back, and OpenAI's SDK does. vLLM 0.32 sends none.
"""

from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# An engine or a tritonserver that was killed is back after half a minute; OpenAI's SDK tries three times.
RETRY_AFTER_S = 5


class RetryAfter:
    """An ASGI app that adds the header to answers of `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
                MutableHeaders(scope=message).setdefault("retry-after", str(RETRY_AFTER_S))
            await send(message)

        await self.app(scope, receive, send_with_header if scope["type"] == "http" else send)
