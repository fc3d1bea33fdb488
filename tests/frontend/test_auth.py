"""Keys and routes: openai_frontend/auth.py, without an engine."""

import base64

import pytest
from fastapi import APIRouter, FastAPI
from starlette.datastructures import Headers
from starlette.routing import BaseRoute
from starlette.testclient import TestClient

from openai_frontend.auth import protect
from openai_frontend.keys import Access, Keys, presented_key

KEYS = Keys(frozenset({"inference-key"}), "control-key")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"trainer:{password}".encode()).decode()}


def x_api_key(key: str) -> dict[str, str]:
    return {"x-api-key": key}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    router = APIRouter()
    for path in ("/v1/completions", "/pause", "/health"):
        router.add_api_route(path, lambda: {"ok": True}, methods=["GET"])
    app.include_router(router)
    protect(app, KEYS, {"/pause"})
    return TestClient(app)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/completions", {}, 401),
        ("/v1/completions", bearer("wrong"), 401),
        ("/v1/completions", bearer("inference-key"), 200),
        ("/v1/completions", bearer("control-key"), 200),
        ("/v1/completions", basic("inference-key"), 200),
        ("/v1/completions", x_api_key("inference-key"), 200),
        ("/v1/completions", x_api_key("wrong"), 401),
        ("/v1/completions", x_api_key(""), 401),
        ("/v1/completions", x_api_key("inference-key") | bearer("wrong"), 401),  # one key counts: Authorization's
        ("/pause", x_api_key("inference-key"), 403),
        ("/pause", x_api_key("control-key"), 200),
        ("/pause", {}, 401),
        ("/pause", bearer("wrong"), 401),
        ("/pause", bearer("inference-key"), 403),
        ("/pause", bearer("control-key"), 200),
        ("/pause", basic("control-key"), 200),
        ("/health", {}, 200),
        ("/nowhere", {}, 404),
        # Not the prefix of a path but the route decides.
        ("//pause", {}, 404),
        ("/v1/../pause", {}, 401),
        ("/openapi.json", {}, 401),
        ("/docs", {}, 401),
    ],
)
def test_a_route_answers_only_to_its_key(client: TestClient, path: str, headers: dict[str, str], status: int) -> None:
    assert client.get(path, headers=headers).status_code == status


def test_a_refusal_has_openais_shape(client: TestClient) -> None:
    answer = client.get("/v1/completions")
    assert answer.json()["error"]["code"] == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_without_a_control_key_control_is_off() -> None:
    assert Keys().refusal(Access.CONTROL, Headers(bearer("anything"))) == (
        403,
        "control is off: the server was started without a control key (--control-key)",
    )


def test_without_inference_keys_anyone_may_generate() -> None:
    assert Keys(control="control-key").refusal(Access.INFERENCE, Headers({})) is None


def test_a_route_that_cannot_be_guarded_is_an_error() -> None:
    app = FastAPI()
    app.router.routes.append(BaseRoute())
    with pytest.raises(TypeError, match="cannot be guarded"):
        protect(app, KEYS, ())


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Basic !!!", "Basic " + base64.b64encode(b"\xff").decode(), "Basic é", "Digest x"]
)
def test_garbage_is_no_key(value: str) -> None:
    assert not presented_key(Headers({"Authorization": value}))


def test_an_api_key_header_that_is_no_ascii_is_a_wrong_key(client: TestClient) -> None:
    assert client.get("/v1/completions", headers={b"x-api-key": b"\xe9\xff"}).status_code == 401


def test_keys_do_not_show_in_a_repr() -> None:
    assert "inference-key" not in repr(KEYS)
    assert "control-key" not in repr(KEYS)
