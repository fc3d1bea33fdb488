"""HTTP answers to vLLM's engine errors."""

import traceback

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse
from vllm.exceptions import GenerationError

from openai_frontend.errors import TritonError
from openai_frontend.served_error import ServedError
from openai_frontend.vllm_seam import (
    EngineDeadError,
    EngineGenerateError,
    exception_handler,
    rebuild_middleware,
)


def attach(app: FastAPI) -> None:
    """Replace vLLM's handlers. One ends the server when its engine has died; Triton starts the engine again."""
    for error in (EngineDeadError, EngineGenerateError):
        app.exception_handler(error)(answer_engine_error)
    app.exception_handler(TritonError)(answer_triton_error)
    app.exception_handler(ValueError)(answer_value_error)
    rebuild_middleware(app)


async def answer_engine_error(request: Request, error: Exception) -> JSONResponse:
    """503 with the replicas' reasons for an engine that has died, else 500."""
    if isinstance(error, EngineDeadError):
        error = request.app.state.engine_client.dead_error
    return await exception_handler(request, error)


async def answer_triton_error(request: Request, error: TritonError) -> JSONResponse:
    """The status that the error has."""
    return await exception_handler(request, ServedError.of(error))


async def answer_value_error(request: Request, error: Exception) -> JSONResponse:
    """400, as vLLM answers; but 500 if it is the answer that JSON cannot express, such as the NaN of broken weights."""
    if any(frame.f_code is JSONResponse.render.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)):
        error = GenerationError(f"the answer cannot be written as JSON: {error}")
    return await exception_handler(request, error)
