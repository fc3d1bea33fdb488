"""The headers with weight versions: `x-weight-version` of answers, `x-min-weight-version` of requests."""

from http import HTTPStatus
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.exceptions import GracefulHTTPError

from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.headers import header_value
from tritonlive.wire.headers import MIN_WEIGHT_VERSION_HEADER, WEIGHT_VERSION_HEADER
from tritonlive.wire.versions import staleness_reason

MINIMUM_HEADER = MIN_WEIGHT_VERSION_HEADER.encode()


class WeightsTooOld(GracefulHTTPError):
    """409: the server's weights are older than the request asks for, or cannot be compared."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, HTTPStatus.CONFLICT)


class WeightVersionHeader:
    """Adds `x-weight-version` to every response: the version of the newest token when the response began.

    A stream that outlives a push continues with newer weights than its header names. The `weight_versions` of its
    choices name them all (see weight_spans.py).
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
                MutableHeaders(scope=message)[WEIGHT_VERSION_HEADER] = header_value(version)
            await send(message)

        await self.app(scope, receive, send_with_version)


class MinimumWeightVersion:
    """Refuses a request whose `x-min-weight-version` is newer than the server's weights (see `staleness_reason`).

    The check is made when the request arrives. Raises WeightsTooOld, or what asking the engine raises.
    """

    def __init__(self, app: ASGIApp, engine: TritonEngineClient) -> None:
        self.app = app
        self.engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope["headers"]:
            if name == MINIMUM_HEADER:
                await self._require(unquote(value.decode("latin-1")))
        await self.app(scope, receive, send)

    async def _require(self, minimum: str) -> None:
        version = self.engine.weight_version
        if version is None or staleness_reason(version, minimum) is not None:
            # A trainer may hear of its commit a moment before this process does.
            version = await self.engine.get_weight_version()
        if (reason := staleness_reason(version, minimum)) is not None:
            raise WeightsTooOld(reason)


def require_minimum(app: FastAPI, engine: TritonEngineClient) -> None:
    """Have every route of the finished app check `x-min-weight-version`. Call it before `protect`: keys come first."""
    for route in app.router.routes:
        if isinstance(route, Route):
            route.app = MinimumWeightVersion(route.app, engine)
