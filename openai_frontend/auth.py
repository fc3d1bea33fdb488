"""Access control: the key that each route needs.

`protect` wraps every route of the finished app, so the check applies to the matched route and not to the text of the
URL's path. An unclassified route needs the inference key. An unknown path is a plain 404.
"""

from collections.abc import Iterable

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from openai_frontend.keys import Access, Keys
from openai_frontend.vllm_seam import ErrorInfo, ErrorResponse

# Probes and scrapers send no keys.
OPEN_PATHS = frozenset({"/health", "/health/", "/ping", "/metrics", "/version"})


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
