"""Access control: the key that each route needs.

`protect` wraps every route of the finished app, so the check applies to the matched route and not to the text of the
URL's path. An unclassified route needs the inference key. An unknown path is a plain 404.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from openai_frontend.vllm_seam import ErrorInfo, ErrorResponse

# Probes and scrapers send no keys.
OPEN_PATHS = frozenset({"/health", "/health/", "/ping", "/metrics", "/version"})


class Access(Enum):
    OPEN = "open"
    INFERENCE = "inference"
    CONTROL = "control"


@dataclass(frozen=True)
class Keys:
    """`inference`: keys for generation; if empty, no key is needed. `control`: the key for all weight operations."""

    inference: frozenset[str] = field(default=frozenset(), repr=False)
    control: str | None = field(default=None, repr=False)

    def refusal(self, access: Access, headers: Headers) -> tuple[int, str] | None:
        """None if `headers` have the required key, else (HTTP status, message)."""
        if access is Access.OPEN:
            return None
        key = presented_key(headers)
        is_control = self.control is not None and matches(key, [self.control])
        if access is Access.CONTROL:
            if self.control is None:
                return 403, "control is off: the server was started without a control key (--control-key)"
            if is_control:
                return None
            if key is not None and matches(key, self.inference):
                return 403, "this route needs the control key; an inference key is not enough"
            return 401, "this route needs the control key, as 'Authorization: Bearer KEY' or as Basic's password"
        if not self.inference or is_control or matches(key, self.inference):
            return None
        return 401, "missing or wrong API key; send it as 'Authorization: Bearer KEY'"


def presented_key(headers: Headers) -> str | None:
    """The Bearer token, or the password of Basic, for trainers that put keys into URLs (http://user:key@host)."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def matches(key: str | None, accepted: Iterable[str]) -> bool:
    """Whether `key` is one of `accepted`. Compares digests, so the time does not depend on the accepted keys."""
    if key is None:
        return False
    digest = hashlib.sha256(key.encode()).digest()
    found = False
    for candidate in accepted:
        found |= hmac.compare_digest(digest, hashlib.sha256(candidate.encode()).digest())
    return found


class Guard:
    """An ASGI app that checks the key before it calls `app`."""

    def __init__(self, app: ASGIApp, access: Access, keys: Keys) -> None:
        self.app = app
        self.access = access
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.keys.refusal(self.access, Headers(scope=scope))
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, message = refusal
        kind = "AuthenticationError" if status == 401 else "PermissionDeniedError"
        error = ErrorResponse(error=ErrorInfo(message=message, type=kind, code=status))
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        await JSONResponse(error.model_dump(), status, headers)(scope, receive, send)


def access_of(path: str, control_paths: Iterable[str]) -> Access:
    if path in OPEN_PATHS:
        return Access.OPEN
    return Access.CONTROL if path in control_paths else Access.INFERENCE


def protect(app: FastAPI, keys: Keys, control_paths: Iterable[str]) -> None:
    """Wrap every route of the finished app. Call it after the last route is added."""
    controls = frozenset(control_paths)
    for route in app.router.routes:
        if not isinstance(route, Route | Mount | WebSocketRoute):
            raise TypeError(f"{route!r} is of a type that cannot be guarded")
        route.app = Guard(route.app, access_of(route.path, controls), keys)
