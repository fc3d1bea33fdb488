"""GET /version: the versions of vLLM and of tritonlive."""

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse

from openai_frontend.vllm_seam import vllm_version
from tritonlive.version import __version__

PATH = "/version"

router = APIRouter()


@router.get(PATH)
async def show_version() -> JSONResponse:
    """vLLM's route, with one more field."""
    return JSONResponse({"version": vllm_version, "tritonlive_version": __version__})


def attach(app: FastAPI) -> None:
    """Replace vLLM's route."""
    routes = app.router.routes
    routes[:] = [route for route in routes if not isinstance(route, APIRoute) or route.path != PATH]
    app.include_router(router)
