"""The response header that says which weights answer."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_frontend.triton_engine import TritonEngineClient

HEADER = "x-weight-version"


class WeightVersionHeader:
    """Adds `x-weight-version` to every response: the version of the newest token when the response began.

    A stream that outlives a push goes on with newer weights than its header names.
    """

    def __init__(self, app: ASGIApp, engine: TritonEngineClient) -> None:
        self.app = app
        self.engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start" and (version := self.engine.weight_version) is not None:
                MutableHeaders(scope=message)[HEADER] = version
            await send(message)

        await self.app(scope, receive, send_with_version)
