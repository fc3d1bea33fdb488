"""The routes of control operations, made from their table (tritonlive/wire/operations).

Two kinds of routes are not made here: vLLM's own, and those of operations with a payload (adapters.py).
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Path, Query, Request
from starlette.responses import JSONResponse

from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.routes.engine import engine
from openai_frontend.vllm_seam import weight_operation_metrics
from tritonlive.wire.operation import Operation, Route, Scope
from tritonlive.wire.operations import OPERATIONS

Endpoint = Callable[..., Awaitable[JSONResponse]]


def build_router() -> APIRouter:
    """Add a route for each operation that has its own. FastAPI parses and documents the arguments."""
    router = APIRouter()
    for operation in OPERATIONS.values():
        route = operation.route
        if route is not None and not route.is_vllms and not operation.has_payload:
            router.add_api_route(route.path, endpoint_of(operation, route), methods=[route.method])
    return router


def endpoint_of(operation: Operation, route: Route) -> Endpoint:
    async def endpoint(request: Request, **arguments: Any) -> JSONResponse:
        with measured(route):
            result = await run(engine(request), operation, arguments)
        return JSONResponse(result if route.message is None else {"message": route.message, **result})

    endpoint.__name__ = operation.name
    endpoint.__doc__ = operation.documentation
    vars(endpoint)["__signature__"] = signature_of(operation, route)
    return endpoint


def signature_of(operation: Operation, route: Route) -> inspect.Signature:
    """The signature for FastAPI: the operation's arguments, each in the path, the query or the body."""
    by_keyword = inspect.Parameter.KEYWORD_ONLY

    def place_of(name: str) -> Any:
        if f"{{{name}}}" in route.path:
            return Path()
        return Query() if route.is_in_url else Body(embed=True)

    return inspect.Signature(
        [
            inspect.Parameter("request", by_keyword, annotation=Request),
            *(
                inspect.Parameter(
                    field.name,
                    by_keyword,
                    default=inspect.Parameter.empty if field.required else field.default,
                    annotation=Annotated[field.type, place_of(field.name)],
                )
                for field in msgspec.structs.fields(operation.arguments)
            ),
        ],
        return_annotation=JSONResponse,
    )


async def run(llm: TritonEngineClient, operation: Operation, arguments: dict[str, Any]) -> Mapping[str, Any]:
    """Run the operation. Raises TritonError, and SeveralReplicas if a trainer must run it at each replica itself."""
    if operation.scope is Scope.EACH:
        return await llm.get_replica_status()
    call = llm.change_version if operation.changes_version else llm.control
    return await call(operation.name, **arguments)


def measured(route: Route) -> AbstractContextManager[Any]:
    """Count the call in vLLM's metrics, if the route has a label for them."""
    return nullcontext() if route.metric is None else weight_operation_metrics().record(route.metric)
