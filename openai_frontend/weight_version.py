"""The headers with weight versions: `x-weight-version` in answers, `x-min-weight-version` in requests."""

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
    """409: the server's weights are older than the requested minimum, or cannot be compared with it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, HTTPStatus.CONFLICT)


class WeightVersionHeader:
    """Adds `x-weight-version` to every response: the version of the newest token when the response began.

    A stream that is open during a push continues with newer weights than its header names. The `weight_versions` of its
    choices name all of them (see weight_spans.py).
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

    The check runs when the request arrives. Raises WeightsTooOld, and the errors of the engine's `get_weight_version`.
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
            # The trainer's answer to a commit may arrive a moment before this process learns the new version.
            version = await self.engine.get_weight_version()
        if (reason := staleness_reason(version, minimum)) is not None:
            raise WeightsTooOld(reason)


def require_minimum(app: FastAPI, engine: TritonEngineClient) -> None:
    """Make all routes of the finished app check `x-min-weight-version`. Call before `protect`, which checks first."""
    for route in app.router.routes:
        if isinstance(route, Route):
            route.app = MinimumWeightVersion(route.app, engine)
