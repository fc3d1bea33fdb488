"""The headers that name weights: an answer's `x-weight-version`, and a request's `x-min-weight-version`."""

import string
from http import HTTPStatus
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.exceptions import GracefulHTTPError

from openai_frontend.headers import header_value
from openai_frontend.triton_engine import TritonEngineClient

HEADER = "x-weight-version"
MINIMUM_HEADER = b"x-min-weight-version"


class WeightsTooOld(GracefulHTTPError):
    """409: the server's weights are not those that the request asks for, or newer ones."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, HTTPStatus.CONFLICT)


class WeightVersionHeader:
    """Adds `x-weight-version` to every response: the version of the newest token when the response began.

    A stream that outlives a push goes on with newer weights than its header names; its choices' `weight_versions` say
    which (see weight_spans.py).
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
                MutableHeaders(scope=message)[HEADER] = header_value(version)
            await send(message)

        await self.app(scope, receive, send_with_version)


class MinimumWeightVersion:
    """Refuses a request whose `x-min-weight-version` the server's weights do not reach (see `too_old`).

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
        if version is None or too_old(version, minimum) is not None:
            # A trainer may be told of its commit a moment before this process is.
            version = await self.engine.get_weight_version()
        if (reason := too_old(version, minimum)) is not None:
            raise WeightsTooOld(reason)


def require_minimum(app: FastAPI, engine: TritonEngineClient) -> None:
    """Have every route of the finished app heed `x-min-weight-version`; before `protect`, so that keys come first."""
    for route in app.router.routes:
        if isinstance(route, Route):
            route.app = MinimumWeightVersion(route.app, engine)


def too_old(version: str, minimum: str) -> str | None:
    """None if weights of `version` are those of `minimum` or newer, else a sentence that says why not.

    Versions are free strings. Equal ones satisfy each other. Of two that differ in nothing but the integer at their
    end, the one with the larger integer is newer; others have no order. (The model has the same rule,
    model_repository/llm/1/versions.py; a test compares them.)
    """
    if version == minimum:
        return None
    (text, number), (minimum_text, minimum_number) = split(version), split(minimum)
    if text != minimum_text or not number or not minimum_number:
        return (
            f"the server's weights are {version!r}, which cannot be compared with the {minimum!r} asked for: only "
            "versions that differ in nothing but the integer at their end have an order"
        )
    # By length first: integers without leading zeros, of any size.
    if (len(number), number) >= (len(minimum_number), minimum_number):
        return None
    return f"the server's weights are {version!r}, older than the {minimum!r} asked for"


def split(version: str) -> tuple[str, str]:
    """`version` as its text and the integer at its end: `("step-", "7")` of `step-007`; the second is empty if none."""
    text = version.rstrip(string.digits)
    digits = version[len(text) :]
    return text, digits.lstrip("0") or digits[:1]
