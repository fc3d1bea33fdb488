"""The headers. The order of versions is in tests/wire/test_versions.py."""

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from openai_frontend.auth import protect
from openai_frontend.keys import Keys
from openai_frontend.weight_version import WeightVersionHeader, require_minimum


class Engine:
    """The version the front end last received, and the version the engine would report."""

    def __init__(self, told: str | None, serving: str) -> None:
        self.weight_version, self.serving = told, serving
        self.num_asked = 0

    async def get_weight_version(self) -> str:
        self.num_asked += 1
        self.weight_version = self.serving
        return self.serving


def client(engine: Any, keys: Keys | None = None) -> TestClient:
    app = FastAPI()
    router = APIRouter()
    router.add_api_route("/v1/completions", lambda: {"ok": True}, methods=["GET"])
    app.include_router(router)
    init_exception_handler(app)
    app.state.args = SimpleNamespace(log_error_stack=False)
    require_minimum(app, engine)
    protect(app, keys or Keys(), ())
    return TestClient(WeightVersionHeader(app, engine))


def ask(engine: Engine, minimum: str | None) -> Any:
    headers = {} if minimum is None else {"X-Min-Weight-Version": minimum}
    return client(engine).get("/v1/completions", headers=headers)


@pytest.mark.parametrize("minimum", [None, "v7", "v3"])
def test_a_request_that_is_satisfied_asks_the_engine_nothing(minimum: str | None) -> None:
    engine = Engine("v7", "v7")
    answer = ask(engine, minimum)
    assert (answer.status_code, answer.headers["x-weight-version"], engine.num_asked) == (200, "v7", 0)


@pytest.mark.parametrize(
    ("minimum", "message"), [("v8", "older than the requested 'v8'"), ("b8", "cannot be compared")]
)
def test_one_that_is_not_gets_409_and_the_current_version(minimum: str, message: str) -> None:
    answer = ask(Engine("v7", "v7"), minimum)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (409, 409, "Conflict")
    assert "'v7'" in error["message"]
    assert message in error["message"]
    assert answer.headers["x-weight-version"] == "v7"


@pytest.mark.parametrize("told", [None, "v7", "default"])
def test_the_engine_has_the_last_word(told: str | None) -> None:
    """A trainer may learn of its commit, and ask, before this process learns of it."""
    answer = ask(Engine(told, "v8"), "v8")
    assert (answer.status_code, answer.headers["x-weight-version"]) == (200, "v8")


def test_without_a_key_nobody_learns_whether_it_would_be_satisfied() -> None:
    engine: Any = Engine("v7", "v7")
    answer = client(engine, Keys(frozenset({"key"}))).get("/v1/completions", headers={"x-min-weight-version": "v8"})
    assert (answer.status_code, engine.num_asked) == (401, 0)


@pytest.mark.parametrize(
    ("version", "header"),
    [
        ("step-7/a:b+c~(d)", "step-7/a:b+c~(d)"),
        ("v1\r\nset-cookie: x", "v1%0D%0Aset-cookie:%20x"),
        ("版本7", "%E7%89%88%E6%9C%AC7"),
        ("50%25", "50%2525"),
    ],
)
def test_any_version_fits_into_a_header_and_comes_back(version: str, header: str) -> None:
    engine = Engine(version, version)
    assert ask(engine, None).headers["x-weight-version"] == header
    assert ask(engine, header).status_code == 200
