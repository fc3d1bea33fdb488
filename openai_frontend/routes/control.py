"""The routes that need the control key: vLLM's RL routes, and tritonlive's own routes for trainers.

vLLM's routes are /pause, /resume, /is_paused, /init_weight_transfer_engine, /shutdown_weight_transfer_engine,
/update_weight_version, /weight_info, /weight_checker (vllm/entrypoints/rl), the cache resets and /server_info
(vllm/entrypoints/serve/dev). vLLM's other development routes, above all /collective_rpc, are not mounted. The routes of
control operations are in operations.py and adapters.py.
"""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute

from openai_frontend.engine.control_operations import lease_holder
from openai_frontend.routes import adapters, operations
from openai_frontend.routes.engine import engine
from openai_frontend.vllm_seam import cache_router, rl_router, server_info_router
from tritonlive.wire.headers import LEASE_HOLDER_HEADER

router = APIRouter()

# vLLM's inference routers serve these, but they affect all clients.
SHARED_STATE_PATHS = frozenset(
    {
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/{adapter_name}"),
        *("/start_profile", "/stop_profile", "/scale_elastic_ep"),
    }
)


@router.get("/get_world_size")
async def get_world_size(request: Request, include_dp: Annotated[bool, Query()] = True) -> JSONResponse:
    """vLLM's route, with the sum over all replicas."""
    return JSONResponse({"world_size": engine(request).get_world_size(include_dp=include_dp)})


async def name_holder(holder: Annotated[str | None, Header(alias=LEASE_HOLDER_HEADER)] = None) -> None:
    """Record the trainer that makes the call, if the header names it (tritonlive/backend/weights/lease.py)."""
    lease_holder.set(holder)


def attach(app: FastAPI) -> frozenset[str]:
    """Add the control routes to `app`; returns the paths that need the control key."""
    before = len(app.router.routes)
    # tritonlive's routes precede vLLM's, because the first of two routes for the same path is kept.
    for each in (router, operations.build_router(), adapters.router, rl_router, cache_router, server_info_router):
        app.include_router(each, dependencies=[Depends(name_holder)])
    added = app.router.routes[before:] = without_shadowed(app.router.routes[before:])
    return frozenset(route.path for route in added if isinstance(route, APIRoute)) | SHARED_STATE_PATHS


def without_shadowed(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """The routes that can match. A replaced route of vLLM's cannot match, but would appear in the documentation."""
    served: set[tuple[str, str]] = set()
    kept: list[BaseRoute] = []
    for route in routes:
        places = {(method, route.path) for method in route.methods} if isinstance(route, APIRoute) else set()
        if not places or places - served:
            kept.append(route)
        served |= places
    return kept
