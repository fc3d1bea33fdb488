"""The assembled app: errors of the engine in a route, and the switch of the fast path."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from starlette.testclient import TestClient
from vllm import envs
from vllm.entrypoints.serve.exception_handling.handlers import vllm_error

from openai_frontend import app as app_module
from openai_frontend.auth import Guard
from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.errors import EngineUnavailable
from openai_frontend.keys import Access
from openai_frontend.options import Options
from openai_frontend.served_error import ServedError
from openai_frontend.streaming.fast_path import FastPathMiddleware
from openai_frontend.vllm_seam import EngineDeadError, EngineGenerateError, vllm_version
from tests.frontend.test_engine_info import ENGINE_INFO

KEY = "control"


def create_app(model: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """The real app of a worker, without a connection."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    for name in ("TRITON_URLS", "VLLM_ARGV", "NUM_WORKERS", "ENGINE_INFO", "USE_FAST_PATH", "IGNORE_UNKNOWN_FIELDS"):
        monkeypatch.setenv(f"TRITONLIVE_FRONTEND_{name}", "")
    monkeypatch.setenv("TRITONLIVE_CONTROL_KEY", KEY)
    described = replace(ENGINE_INFO, vllm_version=vllm_version, model=str(model), engine_argv=["--model", str(model)])
    Options(["127.0.0.1:1"], ["--disable-log-stats"], 1, described, **options).to_environment()
    return app_module.create_app()


def inner(app: Any) -> FastAPI:
    while not isinstance(app, FastAPI):
        app = app.app
    return app


@pytest.fixture(autouse=True)
def registry() -> Any:
    """vLLM's instrumentation registers its metrics with each app."""
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


@pytest.mark.row(1)
def test_every_route_is_guarded_and_few_are_open(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the app's own list of routes, with those that its OpenAPI page leaves out."""
    routes = inner(create_app(tiny_model_dir, monkeypatch)).router.routes
    guards = {getattr(route, "path", repr(route)): getattr(route, "app", None) for route in routes}
    assert len(guards) > 30
    assert [path for path, guard in guards.items() if not isinstance(guard, Guard)] == []
    is_open = {path for path, guard in guards.items() if isinstance(guard, Guard) and guard.access is Access.OPEN}
    assert is_open == {"/health", "/health/", "/ping", "/version", "/metrics"}


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (EngineDeadError(), 503, "The engine is not available: a:8001: it is starting again"),
        (EngineGenerateError("one request"), 500, "one request"),
    ],
)
def test_an_engine_error_in_a_route_is_answered_and_the_server_goes_on(
    error: Exception, status: int, message: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(tiny_model_dir, monkeypatch)
    state = inner(app).state
    state.server = SimpleNamespace(should_exit=False)
    state.engine_client = mock.Mock(
        spec_set=["get_replica_status", "weight_version", "dead_error", "errored", "is_running"]
    )
    state.engine_client.get_replica_status = mock.AsyncMock(side_effect=error)
    state.engine_client.dead_error = ServedError.of(EngineUnavailable("a:8001: it is starting again"))
    state.engine_client.errored, state.engine_client.is_running = True, False
    monkeypatch.setattr(vllm_error, "terminate_if_errored", mock.Mock(side_effect=AssertionError("vLLM's handler ran")))
    client = TestClient(app)
    for _ in range(2):
        answer = client.get("/replica_status", headers={"Authorization": f"Bearer {KEY}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)
        assert message in answer.json()["error"]["message"]
    assert state.server.should_exit is False


@pytest.mark.parametrize("use_fast_path", [True, False])
def test_one_option_switches_the_whole_fast_path(
    use_fast_path: bool, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mock.patch.object(app_module, "render_short_prompts_at_once") as render:
        app = create_app(tiny_model_dir, monkeypatch, use_fast_path=use_fast_path)
    assert render.called is use_fast_path
    assert isinstance(app, FastPathMiddleware) is use_fast_path
    attach = mock.Mock()
    monkeypatch.setattr(app_module.weight_spans, "attach", attach)
    monkeypatch.setattr(app_module.rendering, "attach", mock.Mock())
    monkeypatch.setattr(app_module.serving, "attach", mock.Mock())
    monkeypatch.setattr(app_module, "init_app_state", mock.AsyncMock())
    monkeypatch.setattr("openai_frontend.engine.triton_engine.TritonEngineClient.start", mock.AsyncMock())
    monkeypatch.setattr("openai_frontend.engine.triton_engine.TritonEngineClient.close", mock.AsyncMock())
    monkeypatch.setattr("openai_frontend.adapters.PushedAdapters.attach", mock.Mock())

    async def run() -> None:
        application = inner(app)
        application.state.server = SimpleNamespace(should_exit=False)
        application.state.engine_client, application.state.log_stats = SimpleNamespace(), False
        async with application.router.lifespan_context(application):
            pass

    asyncio.run(run())
    (_, classes), _ = attach.call_args
    assert classes is (app_module.TEMPLATED if use_fast_path else app_module.weight_spans.VERSIONED)


@pytest.mark.parametrize("ignore_unknown_fields", [True, False])
def test_one_option_has_fields_without_effect_ignored(
    ignore_unknown_fields: bool, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(tiny_model_dir, monkeypatch, ignore_unknown_fields=ignore_unknown_fields)
    inner(app).state.openai_serving_chat = mock.Mock(
        create_chat_completion=mock.AsyncMock(side_effect=ValueError("ran"))
    )
    body = {"messages": [{"role": "user", "content": "x"}], "temprature": 1}
    message = TestClient(app).post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert message.startswith("ran" if ignore_unknown_fields else "temprature: unknown field")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_an_error_of_keys_on_anthropics_routes_has_anthropics_form(
    path: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONLIVE_API_KEY", "inference")
    answer = TestClient(create_app(tiny_model_dir, monkeypatch)).post(path, json={})
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


def test_its_end_lets_vllms_settings_follow_the_environment_again(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(tiny_model_dir, monkeypatch)
    monkeypatch.setattr(TritonEngineClient, "start", mock.AsyncMock())
    with TestClient(app):
        monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "77")
        assert envs.VLLM_MAX_N_SEQUENCES != 77
    assert envs.VLLM_MAX_N_SEQUENCES == 77
