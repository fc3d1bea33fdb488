"""HTTP answers to vLLM's engine errors."""

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from openai_frontend.vllm_seam import EngineDeadError, EngineGenerateError, exception_handler, rebuild_middleware


def attach(app: FastAPI) -> None:
    """Replace vLLM's handler, which ends the server when its engine has died. Triton starts the engine again."""
    for error in (EngineDeadError, EngineGenerateError):
        app.exception_handler(error)(answer_engine_error)
    rebuild_middleware(app)


async def answer_engine_error(request: Request, error: Exception) -> JSONResponse:
    """503 with the replicas' reasons for an engine that has died, else 500."""
    if isinstance(error, EngineDeadError):
        error = request.app.state.engine_client.dead_error
    return await exception_handler(request, error)
