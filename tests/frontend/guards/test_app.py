"""The guards in the real app of a worker, without a connection: what is refused never asks for an engine.

What passes the guards is answered with 503, because there is no engine.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.guards.limits import UNLIMITED
from tests.frontend.test_app import create_app

MESSAGES = [{"role": "user", "content": "ab"}]
CHAT = {"messages": MESSAGES, "max_tokens": 2}
COMPLETION = {"prompt": "ab", "max_tokens": 2}
TEMPLATE_ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/chat/completions/batch": {**CHAT, "messages": [MESSAGES]},
    "/v1/messages": {**CHAT, "model": "m"},
    "/v1/messages/count_tokens": {"messages": MESSAGES, "model": "m"},
    "/v1/responses": {"input": "ab"},
    "/tokenize": {"messages": MESSAGES},
    "/invocations": CHAT,
    "/chat/": {"messages": [MESSAGES]},
}
LEGACY = {"/generate/", "/chat/", "/get_sequence_logprobs/"}
"""They serve one model and have no streams, so that fields for these are refused."""
PASSES_WITHOUT_ENGINE = {"/tokenize", "/v1/messages/count_tokens"}


@pytest.fixture(scope="module")
def client(tiny_model_dir: Path) -> Iterator[TestClient]:
    before = set(REGISTRY._collector_to_names)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in UNLIMITED.items():
            patch.setenv(name, value)
        app = create_app(tiny_model_dir, patch)
        patch.setattr(TritonEngineClient, "start", mock.AsyncMock())
        patch.setattr(TritonEngineClient, "is_running", True)
        with TestClient(app) as client:
            yield client
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def post(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    if path in LEGACY:
        return client.post(path, json={name: value for name, value in body.items() if name != "stream"})
    model = client.get("/v1/models").json()["data"][0]["id"]
    return client.post(path, json={**body, "model": model})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_structured_outputs_that_are_no_object_are_refused_by_name(client: TestClient, path: str) -> None:
    body = COMPLETION if path == "/v1/completions" else TEMPLATE_ROUTES[path]
    answer = post(client, path, {**body, "structured_outputs": "json_object"})
    assert answer.status_code == 400, answer.text
    assert "structured_outputs" in message_of(answer)


def message_of(answer: Any) -> str:
    return answer.json()["error"]["message"]


@pytest.mark.parametrize("path", TEMPLATE_ROUTES)
def test_template_kwargs_are_checked_on_every_route(client: TestClient, path: str) -> None:
    for refused in (
        {"tokenize": True, "padding": "max_length", "max_length": 100_000_000},
        {"tokenize": False},
        {"truncation": True},
        {"return_tensors": "pt"},
        {"tokenizer_kwargs": {"max_length": 3}},
        {"conversation": []},
        {"chat_template": "x"},
    ):
        answer = post(client, path, {**TEMPLATE_ROUTES[path], "chat_template_kwargs": refused})
        assert answer.status_code == 400, (refused, answer.text)
        assert "template" in message_of(answer), refused
    answer = post(client, path, {**TEMPLATE_ROUTES[path], "chat_template_kwargs": {"enable_thinking": True}})
    assert answer.status_code == (200 if path in PASSES_WITHOUT_ENGINE else 503), answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/chat/"])
def test_a_clients_chat_template_needs_the_servers_trust(client: TestClient, path: str) -> None:
    answer = post(client, path, {**TEMPLATE_ROUTES[path], "chat_template": "x"})
    assert answer.status_code == 400
    assert "--trust-request-chat-template" in message_of(answer)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/v1/completions", {**COMPLETION, "n": 129}, "--max-n"),
        ("/v1/completions", {**COMPLETION, "n": 16384}, "--max-n"),
        ("/v1/completions", {**COMPLETION, "prompt": ["a"] * 1025}, "--max-prompts"),
        ("/v1/completions", {**COMPLETION, "prompt": ["a"] * 100, "n": 50}, "--max-generations"),
        ("/v1/completions", {**COMPLETION, "repetition_penalty": 1e39}, "repetition_penalty"),
        ("/v1/completions", {**COMPLETION, "logprobs": 10**6}, "logprobs"),
        ("/v1/completions", {**COMPLETION, "stop_token_ids": [-1]}, "stop_token_ids"),
        ("/v1/completions", {**COMPLETION, "allowed_token_ids": [2**40]}, "allowed_token_ids"),
        ("/v1/chat/completions", {**CHAT, "n": 129}, "--max-n"),
        ("/v1/chat/completions", {**CHAT, "repetition_penalty": 1e39}, "repetition_penalty"),
        ("/generate/", {"prompts": ["a"], "n": 129}, "--max-n"),
        ("/generate/", {"prompts": ["a"] * 1025}, "--max-prompts"),
        ("/chat/", {"messages": [MESSAGES], "n": 129}, "--max-n"),
        ("/get_sequence_logprobs/", {"sequences": [[1]] * 1025, "prompt_lengths": [0] * 1025}, "--max-prompts"),
        ("/generate/", {"prompts": ["a"], "generation_kwargs": {"logit_bias": {"5": 1e300}}}, "logit_bias"),
    ],
)
def test_what_is_out_of_range_is_refused_streams_too(
    client: TestClient, path: str, body: dict[str, Any], reason: str, *, stream: bool
) -> None:
    answer = post(client, path, {**body, "stream": stream})
    assert answer.status_code == 400, answer.text
    assert reason in message_of(answer)


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/v1/messages"]
)
@pytest.mark.parametrize("name", ["structured_outputs", "stream_options", "tools", "tool_choice", "messages", "input"])
@pytest.mark.parametrize("value", [5, "a", [5], {"type": 5}, [[]], True], ids=str)
def test_a_value_of_another_type_is_an_error_of_the_client(
    client: TestClient, path: str, name: str, value: Any
) -> None:
    answer = post(client, path, {**COMPLETION, **TEMPLATE_ROUTES.get(path, {}), name: value})
    assert answer.status_code in {200, 400, 503}, answer.text


def test_every_conversation_of_a_batch_counts(client: TestClient) -> None:
    answer = post(client, "/v1/chat/completions/batch", {**CHAT, "messages": [MESSAGES] * 1025})
    assert answer.status_code == 400, answer.text
    assert "--max-prompts" in message_of(answer)


def test_a_priority_from_a_header_is_checked(client: TestClient) -> None:
    answer = client.post("/v1/completions", json=COMPLETION, headers={"x-vllm-priority": str(2**70)})
    assert answer.status_code == 400, answer.text
    assert "priority" in message_of(answer)


@pytest.mark.parametrize(
    "body", [{"prompt": "a" * 1_000_000}, {"messages": [{"role": "user", "content": "1" * 1_000_000}]}]
)
def test_a_text_longer_than_any_prompt_is_not_tokenized(client: TestClient, body: dict[str, Any]) -> None:
    answer = post(client, "/tokenize", body)
    assert answer.status_code == 400
    assert "characters" in message_of(answer)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/invocations", "/generate/", "/detokenize"])
def test_a_body_that_cannot_be_passed_on_is_refused_on_every_route(client: TestClient, path: str) -> None:
    answer = client.post(path, content=rb'{"stop":["\ud83e"]}', headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert message_of(answer).startswith("stop.0: ")


def test_without_an_engine_503_says_when_to_come_back(client: TestClient) -> None:
    for path, body in (("/v1/completions", COMPLETION), ("/generate/", {"prompts": ["a"]})):
        answer = post(client, path, body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), answer.text


def test_a_slash_too_many_is_no_redirect(client: TestClient) -> None:
    answer = client.post("/v1/completions/", json=COMPLETION, follow_redirects=False)
    assert answer.status_code == 404


def test_an_answer_that_json_cannot_express_is_a_fault_of_the_server(client: TestClient) -> None:
    status = mock.AsyncMock(return_value={"logprob": json.loads("NaN")})
    with mock.patch.object(TritonEngineClient, "get_replica_status", status):
        answer = client.get("/replica_status", headers={"Authorization": "Bearer control"})
    assert answer.status_code == 500
    assert "cannot be written as JSON" in message_of(answer)
