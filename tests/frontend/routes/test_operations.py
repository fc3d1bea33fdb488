"""openai_frontend/routes/operations.py and control.py: the routes of control operations over an engine that records."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from openai_frontend.engine.control_operations import lease_holder
from openai_frontend.engine_errors import answer_triton_error
from openai_frontend.errors import SeveralReplicas, TritonError
from openai_frontend.routes import control
from tritonlive.wire.operations import OPERATIONS

RESULT = {"weight_version": "v2", "outcome": "committed"}


class Engine:
    """Records what routes ask for; anything else fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.holders: list[str | None] = []
        self.error: Exception | None = None

    async def control(self, operation: str, payload: bytes | None = None, /, **arguments: Any) -> dict[str, Any]:
        return self._record("control", operation, arguments)

    async def change_version(self, operation: str, **arguments: Any) -> dict[str, Any]:
        return self._record("change_version", operation, arguments)

    async def get_replica_status(self) -> dict[str, Any]:
        return self._record("get_replica_status", "status", {})

    def get_world_size(self, *, include_dp: bool) -> int:
        return 4 if include_dp else 2

    def _record(self, method: str, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((method, operation, arguments))
        self.holders.append(lease_holder.get())
        if self.error is not None:
            raise self.error
        return RESULT


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def app(engine: Engine) -> FastAPI:
    app = FastAPI()
    control.attach(app)
    init_exception_handler(app)
    app.exception_handler(TritonError)(answer_triton_error)
    app.state.args = SimpleNamespace(log_error_stack=False)
    app.state.engine_client = engine
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "body", "call", "message"),
    [
        ("GET", "/replica_status", None, ("get_replica_status", "status", {}), None),
        ("GET", "/weight_parameters", None, ("control", "parameters", {}), None),
        ("GET", "/weight_timeline", None, ("control", "timeline", {}), None),
        (
            *("POST", "/reserve_lease", {"init_info": {"holder": "t"}}),
            *(("control", "reserve_lease", {"init_info": {"holder": "t"}}), None),
        ),
        (
            *("POST", "/start_weight_update", {"update_id": "u", "in_flight": "wait"}),
            ("control", "start_weight_update", {"update_id": "u", "in_flight": "wait"}),
            "Weight update started",
        ),
        (
            *("POST", "/update_weights", {"update_info": [{"names": []}]}),
            ("control", "update_weights", {"update_info": [{"names": []}], "update_id": None}),
            "Weights updated",
        ),
        (
            *("POST", "/prepare_weight_update", {}),
            *(("control", "prepare_weight_update", {"update_id": None}), None),
        ),
        (
            *("POST", "/finish_weight_update", {"weight_version": "v2", "an_unknown_one": 1}),
            (
                *("change_version", "finish_weight_update"),
                {"weight_version": "v2", "in_flight": None, "update_id": None},
            ),
            "Weight update finished",
        ),
        (
            *("POST", "/abort_weight_update", {"force": True}),
            (
                *("control", "abort_weight_update"),
                {"reason": "asked for", "update_id": None, "force": True},
            ),
            None,
        ),
        (
            *("POST", "/rollback", {"to": "v1"}),
            *(("change_version", "rollback", {"in_flight": "keep", "to": "v1", "update_id": None}), None),
        ),
        (
            *("POST", "/reload", {}),
            *(("change_version", "reload", {"weight_version": None, "in_flight": "keep", "update_id": None}), None),
        ),
        (
            *("POST", "/fence", {"reason": "r", "unless_committed": "u"}),
            *(("control", "fence", {"reason": "r", "unless_committed": "u"}), None),
        ),
        ("POST", "/weight_score", {"prompts": [[1, 2]]}, ("control", "score", {"prompts": [[1, 2]]}), None),
        ("POST", "/renew_lease", None, ("control", "renew_lease", {}), None),
        ("GET", "/lora_adapters", None, ("control", "adapters", {}), None),
        (
            *("POST", "/lora_adapters/my%20one/activate?version=v1", None),
            *(("control", "activate_adapter", {"name": "my one", "version": "v1"}), None),
        ),
        (
            *("POST", "/lora_adapters/a/discard?version=v1", None),
            *(("control", "discard_adapter", {"name": "a", "version": "v1"}), None),
        ),
        ("DELETE", "/lora_adapters/a", None, ("control", "remove_adapter", {"name": "a"}), None),
    ],
)
def test_a_route_runs_its_operation(
    client: TestClient,
    engine: Engine,
    method: str,
    path: str,
    body: Any,
    call: tuple[str, str, dict[str, Any]],
    message: str | None,
) -> None:
    answer = client.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == (RESULT if message is None else {"message": message, **RESULT})
    assert engine.calls == [call]


@pytest.mark.parametrize("path", ["/start_weight_update", "/rollback", "/abort_weight_update"])
def test_no_body_means_the_defaults(client: TestClient, engine: Engine, path: str) -> None:
    assert client.post(path).status_code == 200
    (call,) = engine.calls
    assert call[1] == path.strip("/")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/fence", {}, "reason"),
        ("/fence", {"reason": 3}, "reason"),
        ("/update_weights", {"update_info": "all"}, "update_info"),
        ("/start_weight_update", {"in_flight": "hold"}, "in_flight"),
        ("/weight_score", {"prompts": [["x"]]}, "prompts"),
        ("/reserve_lease", {"init_info": []}, "init_info"),
        ("/lora_adapters/a/activate", None, "version"),
    ],
)
def test_what_does_not_fit_is_refused_before_triton_hears_of_it(
    client: TestClient, engine: Engine, path: str, body: Any, field: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
    assert engine.calls == []


def test_the_holder_is_named_in_a_header(client: TestClient, engine: Engine) -> None:
    client.post("/renew_lease", headers={"x-lease-holder": "trainer-1"})
    client.post("/renew_lease")
    assert engine.holders == ["trainer-1", None]


def test_several_replicas_are_refused_with_their_addresses(client: TestClient, engine: Engine) -> None:
    engine.error = SeveralReplicas("fence", ["a:1", "b:2"])
    answer = client.post("/fence", json={"reason": "r"})
    assert answer.status_code == 422
    assert 'WeightSync(["grpc://a:1", "grpc://b:2"])' in answer.json()["error"]["message"]


def test_world_size(client: TestClient) -> None:
    assert client.get("/get_world_size").json() == {"world_size": 4}
    assert client.get("/get_world_size?include_dp=false").json() == {"world_size": 2}


def test_every_operation_with_a_route_is_served_and_needs_the_control_key() -> None:
    app = FastAPI()
    paths = control.attach(app)
    served = {
        (method, route.path) for route in app.router.routes if isinstance(route, APIRoute) for method in route.methods
    }
    for operation in OPERATIONS.values():
        if (route := operation.route) is not None:
            assert (route.method, route.path) in served, operation.name
            assert route.path in paths


def test_ours_replace_vllms(app: FastAPI) -> None:
    """vLLM's router has routes for some of the same paths."""
    routes = [route for route in app.router.routes if isinstance(route, APIRoute)]
    places = [(method, route.path) for route in routes for method in route.methods]
    assert len(places) == len(set(places))
    modules = {(method, route.path): route.endpoint.__module__ for route in routes for method in route.methods}
    for operation in OPERATIONS.values():
        if (route := operation.route) is not None:
            assert modules[route.method, route.path].startswith("vllm.") == route.is_vllms, operation.name


def test_the_routes_are_documented(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    for operation in OPERATIONS.values():
        route = operation.route
        if route is not None and not route.is_vllms and not operation.has_payload:
            documented = paths[route.path][route.method.lower()]
            assert documented["description"].startswith(operation.documentation.splitlines()[0])
