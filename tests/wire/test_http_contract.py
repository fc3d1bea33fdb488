"""The trainer's HTTP client against the front end's routes: both are made from the table, and must meet."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from openai_frontend.engine_errors import answer_triton_error
from openai_frontend.errors import TritonError
from openai_frontend.routes import control
from sync.control.http_control import HttpControl
from sync.control.target import Target
from sync.errors import ConflictError, ControlError, InvalidError, RefusedError, UnavailableError
from tritonlive.wire.error_codes import ErrorCode, encode_error
from tritonlive.wire.operation import Operation
from tritonlive.wire.operations import OPERATIONS

VALUES: dict[str, Any] = {
    "config": {"r": 8},
    "digest": "00ff",
    "force": True,
    "in_flight": "wait",
    "init_info": {"holder": "t"},
    "mode": "keep",
    "name": "my adapter",
    "prompts": [[1, 2]],
    "reason": "ä reason",
    "to": "v0",
    "unless_committed": "u0",
    "update_id": "u1",
    "update_info": {"names": ["w"]},
    "version": "v 1&x=y",
    "weight_version": "v1",
    "clear_cache": False,
}
ROUTED = sorted(name for name, operation in OPERATIONS.items() if operation.route is not None)


class Engine:
    """Records the calls of tritonlive's and vLLM's routes."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes | None, dict[str, Any]]] = []
        self.error: Exception | None = None

    async def control(self, operation: str, payload: bytes | None = None, /, **arguments: Any) -> dict[str, Any]:
        self.calls.append((operation, payload, arguments))
        if self.error is not None:
            raise self.error
        return {"weight_version": "v1", "adapters": []}

    change_version = control

    async def get_replica_status(self) -> dict[str, Any]:
        return await self.control("status")

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        await self.control("pause_generation", mode=mode, clear_cache=clear_cache)

    async def resume_generation(self) -> None:
        await self.control("resume_generation")

    async def is_paused(self) -> bool:
        await self.control("is_paused")
        return True

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self.control("init_weight_transfer_engine", init_info=request.init_info)

    async def shutdown_weight_transfer_engine(self) -> None:
        await self.control("shutdown_weight_transfer_engine")

    async def get_weight_version(self) -> str:
        await self.control("get_weight_version")
        return "v1"


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def client(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpControl]:
    app = FastAPI()
    control.attach(app)
    init_exception_handler(app)
    app.exception_handler(TritonError)(answer_triton_error)
    app.state.args = SimpleNamespace(log_error_stack=False)
    app.state.engine_client = engine
    with TestClient(app) as http, HttpControl(Target.parse("http://front-end:1")) as connected:
        # In this process the front end answers at once, and TestClient has no timeout.
        monkeypatch.setattr(
            connected._http, "request", lambda method, timeout, **request: http.request(method, **request)
        )
        yield connected


def arguments_of(operation: Operation) -> dict[str, Any]:
    return {name: VALUES[name] for name in operation.arguments.__struct_fields__}


@pytest.mark.parametrize("name", ROUTED)
def test_a_call_arrives_as_it_was_made(client: HttpControl, engine: Engine, name: str) -> None:
    operation = OPERATIONS[name]
    arguments = arguments_of(operation)
    payload = b"\x00\xff" if operation.has_payload else None
    client.call(name, arguments, payload=payload)
    assert engine.calls == [(name, payload, arguments)]


@pytest.mark.parametrize("name", ROUTED)
def test_the_arguments_fit_the_table(name: str) -> None:
    """Or the test above would prove nothing."""
    OPERATIONS[name].parse(arguments_of(OPERATIONS[name]))


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - set(ROUTED)))
def test_what_has_no_route_is_refused_here(client: HttpControl, engine: Engine, name: str) -> None:
    with pytest.raises(InvalidError, match=rf"{name}: has no HTTP route; these have one: .*status"):
        client.call(name)
    assert engine.calls == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.INVALID, InvalidError),
        (ErrorCode.REFUSED, RefusedError),
        (ErrorCode.CONFLICT, ConflictError),
        (ErrorCode.UNAVAILABLE, UnavailableError),
        (ErrorCode.INTERNAL, ControlError),
    ],
)
def test_the_models_codes_reach_the_trainer(
    client: HttpControl, engine: Engine, code: ErrorCode, kind: type[ControlError]
) -> None:
    engine.error = TritonError.parse(encode_error("dirty, busy, control_key: words decide nothing", code))
    with pytest.raises(ControlError) as caught:
        client.call("fence", {"reason": "r"})
    assert type(caught.value) is kind
    assert caught.value.message == f"HTTP {int(code.http_status)}: dirty, busy, control_key: words decide nothing"
