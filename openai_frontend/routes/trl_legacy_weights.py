"""Weights from TRL's client up to 1.10, over NCCL: the routes of `trl vllm-serve` that need the control key.

    init_communicator   the first worker hosts the group; the trainer joins it after the answer
    update_named_param  announces one tensor; the trainer sends it after the answer. The first call starts an update
    reset_prefix_cache  ends the update after the trainer has sent all tensors; a new version serves
    close_communicator  leaves the group

The first two routes answer before their operation has ended (`Transfers`). The order is still correct: the trainer
makes its next call after the barrier of the previous tensor, and the model runs operations one at a time. The replica
alone knows the state of an update, because the front end may have several processes. These routes query it each time.

The workers' side is sync/worker/trl_legacy_worker.py. It has not run with NCCL: no machine with a GPU was available.
"""

import asyncio
import json
import logging
from collections.abc import Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse
from vllm.exceptions import GracefulHTTPError

from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.routes.control import get_world_size
from openai_frontend.routes.engine import engine
from openai_frontend.routes.trl_protocol import CommunicatorRequest, NamedParamRequest
from tritonlive.wire.outcomes import FAILURES
from tritonlive.wire.states import State
from tritonlive.wire.versions import next_step

logger = logging.getLogger("uvicorn.error")  # the same as in health.py

BACKEND = "nccl_trl_legacy"  # sync/worker/plugin.py
# A refusal (another trainer is connected, the port is taken) arrives within this time. Otherwise the group waits for
# the trainer, and the trainer waits for this answer.
REFUSAL_S = 1.0

router = APIRouter()
router.add_api_route("/get_world_size/", get_world_size)


class Transfers:
    """Operations that continue after the answers to the calls that started them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, operation: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def settle(self) -> None:
        """Wait for all operations. The replica's status shows failures."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("weights from TRL: %s", error)


@router.post("/init_communicator/")
async def init_communicator(body: CommunicatorRequest, request: Request) -> JSONResponse:
    llm = engine(request)
    require_backend(llm, "init_communicator")
    num_workers = llm.get_world_size(include_dp=True)
    if body.world_size != num_workers + 1:
        raise GracefulHTTPError(
            f"world_size: {body.world_size}; with the {num_workers} workers here it must be {num_workers + 1}",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    joining = transfers(request).begin(llm.control("init_weight_transfer_engine", init_info=body.model_dump()))
    await asyncio.wait([joining], timeout=REFUSAL_S)
    if joining.done():
        joining.result()
    return JSONResponse({"message": "Request received, initializing communicator"})


@router.post("/update_named_param/")
async def update_named_param(body: NamedParamRequest, request: Request) -> JSONResponse:
    llm = engine(request)
    require_backend(llm, "update_named_param")
    update_info = body.to_update_info()
    if (await settled_status(request)).get("state") != State.UPDATING:
        await llm.start_weight_update()
    transfers(request).begin(llm.control("update_weights", update_info=update_info))
    return JSONResponse({"message": "Request received, updating named parameter"})


@router.post("/reset_prefix_cache/")
async def reset_prefix_cache(request: Request) -> JSONResponse:
    """End the running update. Without an update, this is vLLM's reset: it fails while running requests hold blocks."""
    llm = engine(request)
    status = await settled_status(request) if backend(llm) == BACKEND else {}
    if status.get("state") == State.UPDATING:
        await llm.commit_weight_update(next_step(status["weight_version"]))
        success = True  # a commit drops every cached prefix
    else:
        success = await llm.reset_prefix_cache()
    return JSONResponse({"message": f"Request received, resetting prefix cache status: {success}"})


@router.post("/close_communicator/")
async def close_communicator(request: Request) -> JSONResponse:
    """Leave the group. Succeeds without a communicator, too, because a trainer calls it at every exit."""
    llm = engine(request)
    if backend(llm) == BACKEND:
        await llm.control("abort_weight_update", reason="the trainer closed the communicator")
        await llm.shutdown_weight_transfer_engine()
    return JSONResponse({"message": "Request received, closing communicator"})


async def settled_status(request: Request) -> Mapping[str, Any]:
    """Wait for all operations and return the replica's status.

    Raises GracefulHTTPError if a failed update has disconnected the trainer.
    """
    await transfers(request).settle()
    status = await engine(request).get_replica_status()
    outcome = (status.get("last_update") or {}).get("outcome")
    if status.get("lease") is None and outcome in FAILURES:
        reason = status.get("reason") or "the engine was restarted with its checkpoint"
        raise GracefulHTTPError(
            f"the last weight update {outcome}: {reason}; call init_communicator and send all weights again",
            HTTPStatus.CONFLICT,
        )
    return status


def backend(llm: TritonEngineClient) -> str | None:
    config = llm.vllm_config.weight_transfer_config
    return None if config is None else config.backend


def require_backend(llm: TritonEngineClient, operation: str) -> None:
    """Raises GracefulHTTPError if the server has another backend; the message says how to start it."""
    if (found := backend(llm)) != BACKEND:
        raise GracefulHTTPError(
            f"{operation}: weight transfer is {found or 'off'} here; for TRL up to 1.10 start the server with "
            f"--weight-transfer-config '{json.dumps({'backend': BACKEND})}', or use sync.WeightSync, sync.trl, or TRL "
            "1.11 or later",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )


def transfers(request: Request) -> Transfers:
    return request.app.state.trl_transfers


def attach(app: FastAPI) -> frozenset[str]:
    """Add the routes to `app`; returns their paths."""
    app.state.trl_transfers = Transfers()
    app.include_router(router)
    return frozenset(route.path for route in router.routes if isinstance(route, APIRoute))
