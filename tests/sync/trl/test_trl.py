"""TRL's client over sync's transport, against a server that records its requests."""

import base64
import importlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from sync import DeadlineError, TargetError
from sync.trl.client import VLLMClient, install, uninstall

LOGPROBS = {"tokens": ["token_id:5"], "token_logprobs": [-0.5], "top_logprobs": [{"token_id:5": -0.5}]}


class FakeServer(ThreadingHTTPServer):
    """Answers like the front end; `requests` has (path, Authorization, body) of each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None, Any]] = []
        self.failures: list[int] = []  # statuses to answer generation with first
        self.delay_s = 0.0
        self.is_well = True
        self.version = "default"
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, _, body in self.requests if asked == path]

    def keys(self, path: str) -> set[str | None]:
        return {key for asked, key, _ in self.requests if asked == path}


class Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any, **__: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.take(None)
        answers = {
            "/health": {},
            "/v1/models": {"data": [{"id": "tiny"}]},
            "/weight_info": {"weight_version": self.server.version},
            "/get_world_size": {"world_size": 2},
            "/server_info?config_format=json": {"vllm_config": {"model_config": {"dtype": "float32"}}},
        }
        self.answer(200 if self.server.is_well else 503, answers[self.path])

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body: Any = json.loads(self.rfile.read(length)) if length else None
        self.take(body)
        if self.path == "/reset_prefix_cache":
            return self.answer(200, {"success": True})
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        time.sleep(self.server.delay_s)
        with self.server.lock:
            self.server.at_once -= 1
            failure = self.server.failures.pop() if self.server.failures else None
        if failure:
            return self.answer(failure, {"error": {"message": "not now"}})
        if self.path == "/v1/completions":
            prompts = body["prompt"]
            scored = [None, *({"7": {"logprob": -1.5, "rank": 2}, "8": {"logprob": -0.25, "rank": 1}},) * 2]
            choice = {"token_ids": [5], "logprobs": LOGPROBS, "prompt_logprobs": scored}
            choices = [choice | {"prompt_token_ids": p} for p in prompts for _ in range(body.get("n", 1))]
            return self.answer(200, {"choices": choices})
        entry = {"token": "token_id:5", "logprob": -0.5, "top_logprobs": []}
        choice = {"token_ids": [5], "logprobs": {"content": [entry]}}
        asked = [int(m["content"]) for m in body["messages"] if str(m["content"]).isdigit()]
        return self.answer(200, {"prompt_token_ids": asked, "choices": [choice] * body["n"]})

    def take(self, body: Any) -> None:
        self.server.requests.append((self.path, self.headers.get("authorization"), body))

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("x-weight-version", self.server.version)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def client(server) -> Iterator[VLLMClient]:
    with VLLMClient(server.url, control_key="control", api_key="inference", timeout=20) as client:
        yield client


class Pushes(list):
    """Fake of a WeightSync. Records pushed tensors."""

    def push(self, source: Any, version: str) -> SimpleNamespace:
        tensors = source.state_dict() if isinstance(source, nn.Module) else source
        self.append((version, {name: tensor.clone() for name, tensor in tensors.items()}))
        return SimpleNamespace(version=version)

    def close(self) -> None:
        pass


@pytest.fixture
def pushes(client) -> Pushes:
    client.communicator = Pushes()
    return client.communicator


def test_generate_asks_for_token_ids_and_gives_what_trl_reads(server, client):
    server.version = "step-3"
    answer = client.generate([[1, 2], [3]], n=2, temperature=0.5, max_tokens=4, generation_kwargs={"seed": 7})
    (body,) = server.bodies("/v1/completions")
    assert body["prompt"] == [[1, 2], [3]]
    assert (body["return_token_ids"], body["return_tokens_as_token_ids"]) == (True, True)
    assert (body["n"], body["temperature"], body["max_tokens"], body["top_k"], body["seed"]) == (2, 0.5, 4, 0, 7)
    assert answer == {
        "prompt_ids": [[1, 2], [3]],
        "completion_ids": [[5]] * 4,
        "logprobs": [[[-0.5]]] * 4,
        "logprob_token_ids": [[[5]]] * 4,
    }
    assert client.served_version == "step-3"


def test_chats_go_out_together_and_come_back_in_order(server, client):
    server.delay_s = 0.3
    conversations = [[{"role": "user", "content": str(number)}] for number in range(8)]
    began = time.monotonic()
    answer = client.chat(conversations)
    assert time.monotonic() - began < 8 * 0.3
    assert server.most_at_once > 1
    assert answer["prompt_ids"] == [[number] for number in range(8)]


def test_a_pil_image_travels_as_a_data_url(server, client):
    image = Image.new("RGB", (2, 2), "red")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    client.chat([[{"role": "user", "content": content}]])
    (body,) = server.bodies("/v1/chat/completions")
    kind, _, data = body["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_sequence_logprobs_of_the_completion_by_rank(client):
    answer = client.get_sequence_logprobs([[6, 7, 8]], [1], top_logprobs=2)
    assert answer["logprobs"] == [[[-0.25, -1.5]] * 2]
    assert answer["logprob_token_ids"] == [[[8, 7]] * 2]
    assert answer["actual_logprobs"] == [[[-1.5], [-0.25]]]


def test_each_route_sees_its_own_key(server, client):
    client.generate(["a"])
    assert (client.get_world_size(), client.get_server_info()["model_config"]["dtype"]) == (2, "float32")
    client.reset_prefix_cache()
    assert server.keys("/v1/completions") == server.keys("/v1/models") == {"Bearer inference"}
    for path in ("/get_world_size", "/server_info?config_format=json", "/reset_prefix_cache"):
        assert server.keys(path) == {"Bearer control"}


@pytest.mark.parametrize("where", ["url", "environment"])
def test_keys_without_arguments(server, monkeypatch, where):
    monkeypatch.delenv("TRITONLIVE_API_KEY", raising=False)
    monkeypatch.setenv("TRITONLIVE_CONTROL_KEY", "in-environment")
    if where == "environment":
        monkeypatch.setenv("TRITONLIVE_API_KEY", "for-inference")
    url = server.url.replace("//", "//trl:in-url@") if where == "url" else server.url
    with VLLMClient(url) as client:
        client.generate(["a"])
        client.get_world_size()
        assert "in-url" not in client.base_url
    control, inference = ("in-url", "in-url") if where == "url" else ("in-environment", "for-inference")
    assert server.keys("/get_world_size") == {f"Bearer {control}"}
    assert server.keys("/v1/completions") == {f"Bearer {inference}"}


def test_a_passing_failure_is_retried(server, client):
    server.failures = [503]
    assert client.generate(["a"])["completion_ids"] == [[5]]
    assert len(server.bodies("/v1/completions")) == 2


def test_a_call_ends_at_its_deadline(server):
    with VLLMClient(server.url, timeout=0.5) as client:
        server.delay_s = 2
        began = time.monotonic()
        with pytest.raises(DeadlineError, match="generate"):
            client.generate(["a"])
        assert time.monotonic() - began < 1.5


def test_no_server_and_a_sick_one_are_connection_errors(server):
    with pytest.raises(ConnectionError, match="no server within"):
        VLLMClient("http://127.0.0.1:1")
    server.is_well = False
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="answers 503"):
        VLLMClient(server.url, connection_timeout=1)
    assert time.monotonic() - began < 3
    with pytest.raises(TargetError, match="front end"):
        VLLMClient("grpc://127.0.0.1:8001")


def test_an_update_is_one_push_of_copies(client, pushes):
    weight = torch.ones(2)
    with client.weight_update():
        client.update_named_param("a", weight)
        weight += 1  # as when a merged adapter is taken out again
        client.update_named_param("b", weight)
        assert not pushes
    ((version, tensors),) = pushes
    assert version == client.weight_version == "step-0"
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"a": [1, 1], "b": [2, 2]}


def test_a_stream_is_copied_while_it_passes(client, pushes):
    weight = torch.zeros(1)

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("a", "b"):
            weight.add_(1)
            yield name, weight
        weight.zero_()

    client.update_named_params([("a", "float32", [1]), ("b", "float32", [1])], stream())
    assert {name: tensor.item() for name, tensor in pushes[0][1].items()} == {"a": 1, "b": 2}


def test_what_fails_half_way_is_not_pushed(client, pushes):
    def half() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(1)
        raise KeyError

    with pytest.raises(KeyError), client.weight_update():
        client.update_named_params([], half())
    assert not pushes
    with pytest.raises(RuntimeError, match="weight_update"):
        client.update_named_param("b", torch.ones(1))


@pytest.mark.parametrize(("served", "first"), [("default", "step-0"), ("step-9", "step-10"), ("v2", "step-3")])
def test_versions_increase(server, client, pushes, served, first):
    server.version = served
    for _ in range(2):
        client.update_model_params(nn.Linear(2, 1))
    versions = [version for version, _ in pushes]
    assert versions[0] == first
    assert int(versions[1].partition("-")[2]) == int(first.partition("-")[2]) + 1
    assert set(pushes[0][1]) == {"weight", "bias"}


def test_install_and_uninstall(server):
    from trl.generation import vllm_client, vllm_generation

    original = vllm_generation.VLLMClient
    install(api_key="from-install")
    try:
        for module in (vllm_client, vllm_generation):
            made: Any = module.VLLMClient(base_url=server.url, group_port=0, connection_timeout=1)
            made.close()
            assert isinstance(made, VLLMClient)
        assert server.keys("/v1/models") == {"Bearer from-install"}
    finally:
        uninstall()
    assert vllm_client.VLLMClient is vllm_generation.VLLMClient is original


def test_without_trl_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.generation", None)
    monkeypatch.delitem(sys.modules, "sync.trl.client")
    with pytest.raises(ImportError, match="pip install 'trl"):
        importlib.import_module("sync.trl.client")
