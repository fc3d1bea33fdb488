"""vLLM's RL routes, and what a trainer needs beyond them. All of them need the control key.

From vLLM come /pause, /resume, /is_paused, /init_weight_transfer_engine, /start_weight_update, /update_weights,
/finish_weight_update, /update_weight_version, /weight_info, /weight_checker, /get_world_size (vllm/entrypoints/rl), the
cache resets and /server_info (vllm/entrypoints/serve/dev). Its other development routes, /collective_rpc above all, are
not mounted.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Header, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse

from openai_frontend.engine.control_operations import lease_holder
from openai_frontend.routes import adapters
from openai_frontend.routes.engine import engine
from openai_frontend.vllm_seam import cache_router, rl_router, server_info_router, weight_operation_metrics

router = APIRouter()

# Served by vLLM's inference routers, but they change what everybody gets or stop everybody.
SHARED_STATE_PATHS = frozenset(
    {
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/{adapter_name}"),
        *("/start_profile", "/stop_profile", "/scale_elastic_ep"),
    }
)


@router.get("/replica_status")
async def replica_status(request: Request) -> JSONResponse:
    """State of the replica's weights: serving, updating, dirty, paused or restarting, and since which update.

    Of several replicas a list, with the reason why one is left out.
    """
    return JSONResponse(await engine(request).get_replica_status())


@router.get("/get_world_size")
async def get_world_size(request: Request, include_dp: Annotated[bool, Query()] = True) -> JSONResponse:
    """As vLLM's, of all replicas together."""
    return JSONResponse({"world_size": engine(request).get_world_size(include_dp=include_dp)})


@router.get("/weight_parameters")
async def weight_parameters(request: Request) -> JSONResponse:
    """Names, dtypes and shapes of the tensors that a push must bring."""
    return JSONResponse(await engine(request).get_weight_parameters())


@router.get("/weight_timeline")
async def weight_timeline(request: Request) -> JSONResponse:
    """The last updates, oldest first, and with which weights the running requests began."""
    return JSONResponse(await engine(request).control("timeline"))


@router.post("/reserve_lease")
async def reserve_lease(request: Request, init_info: Annotated[dict[str, Any], Body(embed=True)]) -> JSONResponse:
    """Take the lease (`holder`, `lease_s`) before the workers are called into a group."""
    return JSONResponse(await engine(request).control("reserve_lease", init_info=init_info))


@router.post("/start_weight_update")
async def start_weight_update(
    request: Request,
    update_id: Annotated[str | None, Body(embed=True)] = None,
    in_flight: Annotated[str, Body(embed=True)] = "keep",
) -> JSONResponse:
    """As vLLM's; `update_id` names the update, `in_flight` says what becomes of running requests."""
    with weight_operation_metrics().record("start"):
        result = await engine(request).control("start_weight_update", update_id=update_id, in_flight=in_flight)
    return JSONResponse({"message": "Weight update started", **result})


@router.post("/update_weights")
async def update_weights(
    request: Request,
    update_info: Annotated[dict[str, Any] | list[dict[str, Any]], Body(embed=True)],
    update_id: Annotated[str | None, Body(embed=True)] = None,
) -> JSONResponse:
    """As vLLM's."""
    with weight_operation_metrics().record("update"):
        await engine(request).control("update_weights", update_info=update_info, update_id=update_id)
    return JSONResponse({"message": "Weights updated"})


@router.post("/prepare_weight_update")
async def prepare_weight_update(
    request: Request, update_id: Annotated[str | None, Body(embed=True)] = None
) -> JSONResponse:
    """Have every rank say whether it can load the update; nothing changes."""
    return JSONResponse(await engine(request).control("prepare_weight_update", update_id=update_id))


@router.post("/finish_weight_update")
async def finish_weight_update(
    request: Request,
    weight_version: Annotated[str | None, Body(embed=True)] = None,
    in_flight: Annotated[str | None, Body(embed=True)] = None,
    update_id: Annotated[str | None, Body(embed=True)] = None,
) -> JSONResponse:
    """As vLLM's, and says how long generation was paused; `in_flight`: keep, wait or abort."""
    options = {"in_flight": in_flight, "update_id": update_id}
    with weight_operation_metrics().record("finish"):
        result = await engine(request).commit_weight_update(weight_version, **options)
    return JSONResponse({"message": "Weight update finished", **result})


@router.post("/abort_weight_update")
async def abort_weight_update(
    request: Request,
    reason: Annotated[str, Body(embed=True)] = "asked for",
    update_id: Annotated[str | None, Body(embed=True)] = None,
    force: Annotated[bool, Body(embed=True)] = False,
) -> JSONResponse:
    """Give up a running update, and say what became of it."""
    arguments = {"reason": reason, "update_id": update_id, "force": force}
    return JSONResponse(await engine(request).control("abort_weight_update", **arguments))


@router.post("/rollback")
async def rollback(
    request: Request,
    in_flight: Annotated[str, Body(embed=True)] = "keep",
    to: Annotated[str | None, Body(embed=True)] = None,
    update_id: Annotated[str | None, Body(embed=True)] = None,
) -> JSONResponse:
    """Serve an earlier version again: the one named, else the one before."""
    arguments = {"in_flight": in_flight, "to": to, "update_id": update_id}
    return JSONResponse(await engine(request).change_version("rollback", **arguments))


@router.post("/reload")
async def reload(
    request: Request,
    weight_version: Annotated[str | None, Body(embed=True)] = None,
    update_id: Annotated[str | None, Body(embed=True)] = None,
) -> JSONResponse:
    """Serve the checkpoint on disk again."""
    arguments = {"weight_version": weight_version, "update_id": update_id}
    return JSONResponse(await engine(request).change_version("reload", **arguments))


@router.post("/fence")
async def fence(
    request: Request,
    reason: Annotated[str, Body(embed=True)],
    unless_committed: Annotated[str | None, Body(embed=True)] = None,
) -> JSONResponse:
    """Refuse to generate until a push commits, unless that update is live here."""
    arguments = {"reason": reason, "unless_committed": unless_committed}
    return JSONResponse(await engine(request).control("fence", **arguments))


@router.post("/weight_score")
async def weight_score(request: Request, prompts: Annotated[list[list[int]], Body(embed=True)]) -> JSONResponse:
    """Logprobs of the prompts' own tokens, for a trainer to compare with its own."""
    return JSONResponse(await engine(request).control("score", prompts=prompts))


@router.post("/renew_lease")
async def renew_lease(request: Request) -> JSONResponse:
    """The heartbeat of a connected trainer."""
    return JSONResponse(await engine(request).control("renew_lease"))


async def name_holder(x_lease_holder: Annotated[str | None, Header()] = None) -> None:
    """A trainer that holds a lease says so in the header `x-lease-holder` (tritonlive/backend/weights/lease.py)."""
    lease_holder.set(x_lease_holder)


def attach(app: FastAPI) -> frozenset[str]:
    """Add the control routes to `app`; returns the paths that need the control key."""
    before = len(app.router.routes)
    for each in (
        router,
        adapters.router,
        rl_router,
        cache_router,
        server_info_router,
    ):  # ours first: the first match serves
        app.include_router(each, dependencies=[Depends(name_holder)])
    added = app.router.routes[before:]
    return frozenset(route.path for route in added if isinstance(route, APIRoute)) | SHARED_STATE_PATHS
