"""openai_frontend/adapters.py on vLLM's own table of models, and the routes of a push."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.datastructures import State
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry, OpenAIServingModels
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.lora.request import LoRARequest

from openai_frontend.adapters import AdapterVersionHeader, PushedAdapters, note
from openai_frontend.routes import adapters as routes
from openai_frontend.routes import operations


def announcement(serial: int, **versions: str) -> str:
    return json.dumps({"serial": str(serial), "adapters": versions})


@pytest.fixture
def models() -> OpenAIServingModels:
    """Without an engine."""
    models: Any = OpenAIServingModels.__new__(OpenAIServingModels)
    models.base_model_paths = [BaseModelPath("base", "base")]
    models.registry = OpenAIModelRegistry(SimpleNamespace(max_model_len=8), models.base_model_paths)  # ty: ignore
    models.lora_requests = {"on-disk": LoRARequest("on-disk", 1, "folder")}
    return models


def labels(models: OpenAIServingModels) -> dict[str, str]:
    return {name: request.lora_name for name, request in models.lora_requests.items()}


def test_the_table_follows_the_announcements(models: OpenAIServingModels) -> None:
    pushed = PushedAdapters()
    assert pushed.take(announcement(1, mine="v1")) == "1"
    pushed.attach(State({"openai_serving_models": models}))
    assert labels(models) == {"on-disk": "on-disk", "mine": "mine@v1"}, "what was told before there was a table"
    first = models.lora_requests["mine"]
    pushed.take(announcement(2, mine="v2", other="a b"))
    assert labels(models) == {"on-disk": "on-disk", "mine": "mine@v2", "other": "other@a b"}
    assert first.lora_name == "mine@v1", "requests that have it keep it"
    pushed.take(announcement(3))
    assert labels(models) == {"on-disk": "on-disk"}


def test_of_several_replicas_the_newest_announcement_counts(models: OpenAIServingModels) -> None:
    """A push activates one replica a moment before the other, which has staged it by then."""
    pushed = PushedAdapters()
    pushed.attach(State({"openai_serving_models": models}))
    for replica in (0, 1):
        pushed.take(announcement(1, mine="v1"), replica)
    pushed.take(announcement(2, mine="v2"), 1)
    assert labels(models)["mine"] == "mine@v2"
    pushed.take(announcement(2, mine="v2"), 0)
    pushed.take(announcement(3), 1)
    assert labels(models)["mine"] == "mine@v2", "one of them serves it still"
    pushed.take(announcement(3), 0)
    assert "mine" not in labels(models)


def test_the_list_of_models_has_the_names_that_requests_use(models: OpenAIServingModels) -> None:
    pushed = PushedAdapters()
    pushed.attach(State({"openai_serving_models": models}))
    pushed.take(announcement(1, mine="v1"))
    cards = asyncio.run(models.show_available_models()).data
    assert [(card.id, card.root, card.parent) for card in cards] == [
        ("base", "base", None),
        ("on-disk", "folder", "base"),
        ("mine", "pushed:mine@v1", "base"),
    ]
    assert models.model_name(models.lora_requests["mine"]) == "mine@v1", "what answers call it"


def test_another_class_of_models_is_refused() -> None:
    with pytest.raises(TypeError, match="openai_serving_models is a object"):
        PushedAdapters().attach(State({"openai_serving_models": object()}))


@pytest.mark.parametrize(
    ("request_of_vllm", "header"),
    [
        (LoRARequest("mine@v 1", 2**30, "pushed"), "mine@v%201"),
        (LoRARequest("on-disk", 1, "folder"), None),
        (None, None),
    ],
)
def test_the_header_names_the_version_even_from_a_task_of_its_own(
    request_of_vllm: LoRARequest | None, header: str | None
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def handler() -> None:
            note(request_of_vllm)

        await asyncio.create_task(handler())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = TestClient(AdapterVersionHeader(app))
    assert client.get("/").headers.get("x-adapter-version") == header
    note(request_of_vllm)  # outside a request: nothing to add it to


class Engine:
    """Records control operations."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes | None, dict[str, Any]]] = []

    async def control(self, operation: str, payload: bytes | None = None, /, **arguments: Any) -> dict[str, Any]:
        self.calls.append((operation, payload, arguments))
        return {"is_changed": True}


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def client(engine: Engine) -> TestClient:
    app = FastAPI()
    app.include_router(operations.build_router())
    app.include_router(routes.router)
    init_exception_handler(app)
    app.state.args = SimpleNamespace(log_error_stack=False)
    app.state.engine_client = engine
    return TestClient(app)


CONFIG = {"x-adapter-config": '{"r": 8}'}


def test_a_push_is_staged_and_activated(client: TestClient, engine: Engine) -> None:
    answer = client.put("/lora_adapters/mine?version=v1&digest=00ff", content=b"bytes", headers=CONFIG)
    assert (answer.status_code, answer.json()) == (200, {"is_changed": True})
    named = {"name": "mine", "version": "v1"}
    assert engine.calls == [
        ("stage_adapter", b"bytes", named | {"config": {"r": 8}, "digest": "00ff"}),
        ("activate_adapter", None, named),
    ]
    del engine.calls[:]
    client.put("/lora_adapters/mine?version=v1&stage=true", content=b"bytes", headers=CONFIG)
    client.post("/lora_adapters/mine/discard?version=v1")
    client.post("/lora_adapters/mine/activate?version=v1")
    client.delete("/lora_adapters/mine")
    client.get("/lora_adapters")
    assert [operation for operation, _, _ in engine.calls] == [
        *("stage_adapter", "discard_adapter", "activate_adapter", "remove_adapter", "adapters")
    ]


@pytest.mark.parametrize(
    ("query", "headers", "body", "status", "message"),
    [
        ("version=v1", CONFIG, b"", 400, "the body is empty"),
        ("version=v1", CONFIG, b"x" * 11, 413, "an adapter may have at most 10 bytes"),
        (
            "version=v1",
            CONFIG | {"transfer-encoding": "chunked"},
            b"x" * 11,
            413,
            "an adapter may have at most 10 bytes",
        ),
        ("version=v1", {"x-adapter-config": "{"}, b"x", 400, "x-adapter-config: is not JSON"),
        ("version=v1", {"x-adapter-config": "[]"}, b"x", 400, "expected a JSON object"),
        ("version=v1", {}, b"x", 400, "x-adapter-config"),
        ("", CONFIG, b"x", 400, "version"),
    ],
)
def test_what_is_no_push_is_refused_before_triton_hears_of_it(
    client: TestClient,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
    message: str,
) -> None:
    monkeypatch.setattr(routes, "MAX_ADAPTER_BYTES", 10)
    content: Any = iter([body]) if "transfer-encoding" in headers else body
    answer = client.put(f"/lora_adapters/mine?{query}", content=content, headers=headers)
    assert answer.status_code == status
    assert message in answer.text
    assert engine.calls == []
