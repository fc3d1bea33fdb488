"""Answers of guards that stand before vLLM's error handlers, with OpenAI's body; anthropic_errors.py rewrites it."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from openai_frontend.vllm_seam import ErrorInfo, ErrorResponse

CLOSE = {"connection": "close"}
"""For an answer to a request whose body was not read: the rest of the body must not be read as the next request."""


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: HTTPStatus,
    message: str,
    *,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer the request. field: name of the field at fault."""
    kind = "BadRequestError" if status == HTTPStatus.BAD_REQUEST else status.phrase
    error = ErrorResponse(error=ErrorInfo(message=message, type=kind, code=status, param=field))
    await JSONResponse(error.model_dump(), status, headers)(scope, receive, send)
