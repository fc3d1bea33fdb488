"""Answers 400 with the field's name for a value of a type that its field does not take, where vLLM answers 500.

vLLM's request models look at fields in validators that run before pydantic checks their types (`mode="before"` in
the protocol modules of vllm.entrypoints): `"structured_outputs": "json_object"` ends in `'str' object has no attribute
'get'`. Unnecessary once those validators take any JSON value.
"""

import traceback
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from vllm.exceptions import VLLMValidationError

from openai_frontend.guards.ignored_fields import model_of
from openai_frontend.vllm_seam import exception_handler

# What looking into a value of another type raises.
LOOKING = (AttributeError, TypeError, LookupError)


def attach(app: FastAPI) -> None:
    """Replace the answer to errors of validators. Call it before `rebuild_middleware`."""
    for error in LOOKING:
        app.exception_handler(error)(answer)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """400 if a validator of a request's model raised `error`, else vLLM's answer."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    if TypeAdapter.validate_python.__code__ in frames:
        body = await request.json()  # parsed by FastAPI already, and kept
        error = refusal(model_of(request.scope.get("route"), body), body) or VLLMValidationError(
            f"a field of the body is of a type that it does not take: {error}"
        )
    return await exception_handler(request, error)


def refusal(model: Any, body: Any) -> VLLMValidationError | None:
    """The error for the first field of `body` whose value its type in `model` does not take."""
    for name in getattr(model, "model_fields", {}).keys() & body.keys() if isinstance(body, dict) else ():
        try:
            type_of(model, name).validate_python(body[name])
        except ValidationError as error:
            return VLLMValidationError(f"{name}: {error.errors()[0]['msg']}", parameter=name)
        except LOOKING:
            return VLLMValidationError(f"{name}: is of a type that the field does not take", parameter=name)
    return None


@cache
def type_of(model: Any, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(model.model_fields[name].annotation)
