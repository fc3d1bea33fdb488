"""A trainer pushes LoRA adapters from memory while clients generate with them."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from sync import ConflictError, InvalidError, RefusedError, WeightSync
from tritonlive.launch import Stack

from .conftest import MODEL, bearer, wait_until
from .lora import CONFIG, PREFIX, RANK, adapter, merged_logprobs

PROMPT = [5, 6, 7, 8, 9]
Q_PROJ = f"{PREFIX}model.layers.0.self_attn.q_proj"


def address(stack: Stack, protocol: str) -> str:
    return stack.frontend_url if protocol == "http" else f"grpc://{stack.grpc_url}"


@pytest.fixture
def sync(lora_stack: Stack) -> Iterator[WeightSync]:
    with WeightSync(address(lora_stack, "grpc"), control_key=lora_stack.control_key, timeout=60) as client:
        yield client


@dataclass(frozen=True)
class Answer:
    """One choice of /v1/completions, and the versions that its answer names."""

    tokens: list[int]
    logprobs: list[float]
    model: str
    header: str | None
    adapter_version: str | None


class Stream:
    """A streamed choice. `versions` lists those that its chunks name."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[str] = []
        self.header: str | None = None
        self.begun = asyncio.Event()

    async def read(self, http: httpx.AsyncClient, request: dict[str, Any]) -> None:
        async with http.stream("POST", "/v1/completions", json=request | {"stream": True}) as answer:
            self.header = answer.headers.get("x-adapter-version")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                    self.tokens += choice["token_ids"] or []
                    self.begun.set()
                    self.logprobs += choice["logprobs"]["token_logprobs"] if choice["logprobs"] else []
                    self.versions += [choice["adapter_version"]] if "adapter_version" in choice else []


def body(model: str, num_tokens: int) -> dict[str, Any]:
    options = {"temperature": 0, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}
    return {"model": model, "prompt": PROMPT, "max_tokens": num_tokens, **options}


def read(answer: httpx.Response) -> Answer:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return Answer(
        choice["token_ids"],
        choice["logprobs"]["token_logprobs"],
        answer.json()["model"],
        answer.headers.get("x-adapter-version"),
        choice.get("adapter_version"),
    )


def ask(stack: Stack, model: str, num_tokens: int = 12) -> Answer:
    """Ask on a new connection, so that any of the front end's processes may answer."""
    url = f"{stack.frontend_url}/v1/completions"
    return read(httpx.post(url, json=body(model, num_tokens), headers=bearer(stack.api_key), timeout=120))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_pushed_adapter_answers_as_transformers_does_with_it(
    lora_stack: Stack, tiny_model_dir: Path, protocol: str
) -> None:
    base = ask(lora_stack, MODEL)
    name, tensors = f"over-{protocol}", adapter(1 if protocol == "http" else 2)
    with WeightSync(address(lora_stack, protocol), control_key=lora_stack.control_key, timeout=60) as sync:
        report = sync.push_adapter(name, tensors, "step-1", config=CONFIG)
        assert (report.name, report.version, report.num_tensors) == (name, "step-1", len(tensors))
        answers = [ask(lora_stack, name) for _ in range(8)]
        for answer in answers:
            assert answer.tokens != base.tokens
            assert answer.logprobs == pytest.approx(
                merged_logprobs(tiny_model_dir, tensors, PROMPT, answer.tokens), abs=1e-3
            )
            assert answer.model == answer.header == answer.adapter_version == f"{name}@step-1"
        assert ask(lora_stack, MODEL) == base
        assert (base.model, base.header, base.adapter_version) == (MODEL, None, None)
        models = httpx.get(f"{lora_stack.frontend_url}/v1/models", headers=bearer(lora_stack.api_key)).json()["data"]
        assert [(card["id"], card["parent"]) for card in models if card["id"] == name] == [(name, MODEL)]
        sync.remove_adapter(name)
    gone = httpx.post(
        f"{lora_stack.frontend_url}/v1/completions", json=body(name, 1), headers=bearer(lora_stack.api_key)
    )
    assert (gone.status_code, gone.json()["error"]["type"]) == (404, "NotFoundError")


def native(stack: Stack, lora_name: str | None, **more: Any) -> httpx.Response:
    params = {"temperature": 0, "max_tokens": 12, "ignore_eos": True} | ({"lora_name": lora_name} if lora_name else {})
    request = {"input_ids": PROMPT, "sampling_parameters": json.dumps(params), "return_token_ids": True} | more
    request["api_key"] = stack.api_key
    return httpx.post(f"{stack.http_url}/v2/models/llm/generate", json=request, timeout=120)


def test_native_requests_name_it_as_in_vllm_backend(lora_stack: Stack, sync: WeightSync) -> None:
    sync.push_adapter("native", adapter(3), "v1", config=CONFIG)
    answer = native(lora_stack, "native").json()
    assert answer["token_ids"] == ask(lora_stack, "native").tokens
    assert answer["adapter_version"] == "native@v1"
    assert "adapter_version" not in native(lora_stack, None).json()
    unknown = native(lora_stack, "unknown")
    assert unknown.status_code == 400
    assert "no adapter 'unknown' was pushed; there are native" in unknown.json()["error"]
    sync.remove_adapter("native")


def test_streams_end_with_the_version_they_began_with(
    lora_stack: Stack, sync: WeightSync, tiny_model_dir: Path
) -> None:
    first, second = adapter(4), adapter(5)
    streams = [Stream() for _ in range(16)]

    async def run() -> int:
        """Returns how many streams still ran when the push had returned."""
        options: Any = {"base_url": lora_stack.frontend_url, "headers": bearer(lora_stack.api_key), "timeout": 120}
        async with httpx.AsyncClient(**options) as http:
            tasks = [asyncio.create_task(stream.read(http, body("mine", 400))) for stream in streams]
            await asyncio.gather(*(stream.begun.wait() for stream in streams))
            await asyncio.to_thread(sync.push_adapter, "mine", second, "v2", config=CONFIG)
            num_running = sum(not task.done() for task in tasks)
            await asyncio.gather(*tasks)
            return num_running

    sync.push_adapter("mine", first, "v1", config=CONFIG)
    assert asyncio.run(run()) > 0
    for stream in streams:
        assert (stream.header, stream.versions, len(stream.tokens)) == ("mine@v1", ["mine@v1"], 400)
        expected = merged_logprobs(tiny_model_dir, first, PROMPT, stream.tokens)
        assert stream.logprobs == pytest.approx(expected, abs=1e-3), "no token is of the other version"
    answer = ask(lora_stack, "mine")
    assert answer.header == "mine@v2"
    assert answer.logprobs == pytest.approx(merged_logprobs(tiny_model_dir, second, PROMPT, answer.tokens), abs=1e-3)
    sync.remove_adapter("mine")


def test_each_answer_is_of_the_version_it_names_while_pushes_go_on(lora_stack: Stack, sync: WeightSync) -> None:
    expected: dict[str, list[int]] = {}
    answers: list[Answer] = []
    stopped = asyncio.Event()

    async def client(http: httpx.AsyncClient) -> None:
        while not stopped.is_set():
            answers.append(read(await http.post("/v1/completions", json=body("busy", 12))))

    async def trainer() -> None:
        for number in range(2, 9):
            await asyncio.to_thread(sync.push_adapter, "busy", adapter(100 + number), f"v{number}", config=CONFIG)
            for answer in [await asyncio.to_thread(ask, lora_stack, "busy") for _ in range(4)]:
                assert answer.header == f"busy@v{number}", "what is sent after a push is of the new version"
                expected[f"busy@v{number}"] = answer.tokens

    async def run() -> None:
        options: Any = {"base_url": lora_stack.frontend_url, "headers": bearer(lora_stack.api_key), "timeout": 120}
        async with httpx.AsyncClient(**options) as http:
            clients = [asyncio.create_task(client(http)) for _ in range(6)]
            await trainer()
            stopped.set()
            await asyncio.gather(*clients)

    sync.push_adapter("busy", adapter(101), "v1", config=CONFIG)
    expected["busy@v1"] = ask(lora_stack, "busy").tokens
    asyncio.run(run())
    assert len({tuple(tokens) for tokens in expected.values()}) == 8
    assert len({answer.header for answer in answers}) > 4
    assert all(answer.header == answer.adapter_version for answer in answers)
    assert [answer for answer in answers if answer.tokens != expected[answer.header or ""]] == []
    sync.remove_adapter("busy")


def test_prompt_logprobs_in_a_batch_are_those_of_a_request_alone(lora_stack: Stack) -> None:
    """vLLM 0.32 ends the engine here: see sync/worker/lora_logits.py."""

    async def ask(http: httpx.AsyncClient) -> list[dict[str, Any] | None]:
        answer = await http.post(
            "/v1/completions", json=body(MODEL, 8) | {"prompt_logprobs": 3, "n": 2, "temperature": 1}
        )
        return answer.raise_for_status().json()["choices"][0]["prompt_logprobs"]

    async def ask_alone_and_together() -> list[list[dict[str, Any] | None]]:
        headers = bearer(lora_stack.api_key)
        async with httpx.AsyncClient(base_url=lora_stack.frontend_url, headers=headers, timeout=60) as http:
            return [await ask(http), *await asyncio.gather(*(ask(http) for _ in range(16)))]

    def values(prompt: list[dict[str, Any] | None]) -> list[float]:
        return [each["logprob"] for token in prompt if token for _, each in sorted(token.items())]

    alone, *together = map(values, asyncio.run(ask_alone_and_together()))
    assert len(alone) >= 3 * (len(PROMPT) - 1)
    for prompt in together:
        assert prompt == pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_bad_adapter_is_refused_and_the_old_one_keeps_serving(lora_stack: Stack, protocol: str) -> None:
    good = adapter(6)
    holey = good | {f"{Q_PROJ}.lora_B.weight": good[f"{Q_PROJ}.lora_B.weight"] * float("nan")}
    short = good | {f"{Q_PROJ}.lora_A.weight": good[f"{Q_PROJ}.lora_A.weight"][:, :32]}
    with WeightSync(address(lora_stack, protocol), control_key=lora_stack.control_key, timeout=60) as sync:
        sync.push_adapter("kept", good, "v1", config=CONFIG)
        before = ask(lora_stack, "kept")
        with pytest.raises(InvalidError, match=r"q_proj\.lora_B\.weight: holds NaN or Inf"):
            sync.push_adapter("kept", holey, "v2", config=CONFIG)
        with pytest.raises(InvalidError, match=r"q_proj: made for a weight of shape \[64, 32\]"):
            sync.push_adapter("kept", short, "v2", config=CONFIG)
        with pytest.raises(InvalidError, match="rank 32 is greater than max_lora_rank 16"):  # vLLM's word
            sync.push_adapter("kept", adapter(6, 32), "v2", config=CONFIG | {"r": 32})
        with pytest.raises(InvalidError, match="does not yet support DoRA"):
            sync.push_adapter("kept", good, "v2", config=CONFIG | {"use_dora": True})
        with pytest.raises(ConflictError, match="kept@v1 serves already, with other weights"):
            sync.push_adapter("kept", adapter(7), "v1", config=CONFIG)
        assert sync.push_adapter("kept", good, "v1", config=CONFIG).unchanged
        assert ask(lora_stack, "kept") == before
        sync.remove_adapter("kept")


def test_a_broken_blob_over_http(lora_stack: Stack) -> None:
    config = {"x-adapter-config": json.dumps({"r": RANK, "lora_alpha": 8})} | bearer(lora_stack.control_key)
    url = f"{lora_stack.frontend_url}/lora_adapters/broken"
    answer = httpx.put(url, params={"version": "v1"}, content=b"not safetensors", headers=config, timeout=60)
    assert answer.status_code == 400
    assert "is not a safetensors file" in answer.json()["error"]["message"]
    answer = httpx.put(url, params={"version": "v1", "digest": "0" * 16}, content=b"bits", headers=config, timeout=60)
    assert "the digest does not match" in answer.json()["error"]["message"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_without_the_control_key_nothing_is_pushed(lora_stack: Stack, protocol: str) -> None:
    for key in ("wrong", lora_stack.api_key):
        with WeightSync(address(lora_stack, protocol), control_key=key, timeout=60) as sync:
            with pytest.raises(RefusedError):
                sync.push_adapter("stolen", adapter(1), "v1", config=CONFIG)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_without_lora_the_error_says_what_to_add(stack: Stack, protocol: str) -> None:
    with WeightSync(address(stack, protocol), control_key=stack.control_key, timeout=60) as sync:
        with pytest.raises(ConflictError, match="start vLLM with --enable-lora"):
            sync.push_adapter("mine", adapter(1), "v1", config=CONFIG)


def test_adapters_on_disk_go_on_working(lora_stack: Stack, tmp_path: Path) -> None:
    save_file(adapter(8), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    headers = bearer(lora_stack.control_key)
    with httpx.Client(base_url=lora_stack.frontend_url, headers=headers, timeout=60) as one_worker:
        loaded = one_worker.post("/v1/load_lora_adapter", json={"lora_name": "on-disk", "lora_path": str(tmp_path)})
        assert loaded.status_code == 200, loaded.text
        answer = read(one_worker.post("/v1/completions", json=body("on-disk", 12)))
        assert (answer.model, answer.header, answer.adapter_version) == ("on-disk", None, None)
        assert answer.tokens != ask(lora_stack, MODEL).tokens
        assert one_worker.post("/v1/unload_lora_adapter", json={"lora_name": "on-disk"}).status_code == 200


def test_an_adapter_stands_on_the_weights_that_are_pushed_under_it(
    lora_stack: Stack, sync: WeightSync, tiny_model_dir: Path
) -> None:
    tensors = adapter(11)
    sync.push_adapter("above", tensors, "v1", config=CONFIG)
    before = ask(lora_stack, "above")
    weights = load_file(tiny_model_dir / "model.safetensors")
    scaled = {name: tensor.float() * (1.5 if "mlp" in name else 1) for name, tensor in weights.items()}
    key = lora_stack.control_key
    with WeightSync(address(lora_stack, "grpc"), backend="gloo", control_key=key, timeout=60) as trainer:
        trainer.push(scaled, "scaled")
        after = ask(lora_stack, "above")
        trainer.push(weights, "restored")
    expected = merged_logprobs(tiny_model_dir, tensors, PROMPT, after.tokens, mlp_scale=1.5)
    assert after.logprobs == pytest.approx(expected, abs=1e-3)
    assert after.tokens != before.tokens
    assert ask(lora_stack, "above") == before
    sync.remove_adapter("above")


@pytest.fixture
def is_back(lora_stack: Stack) -> Callable[[], bool]:
    def look() -> bool:
        with suppress(httpx.TransportError, AssertionError):
            return all(ask(lora_stack, MODEL, 1).model == MODEL for _ in range(6))  # both processes, most likely
        return False

    return look


# No fault of `make test-faults`: it would start this module's stack for it alone, and no row of its list needs it.
def test_an_adapter_outlives_the_engine_process(
    lora_stack: Stack, sync: WeightSync, is_back: Callable[[], bool]
) -> None:
    sync.push_adapter("durable", adapter(9), "v1", config=CONFIG)
    before = ask(lora_stack, "durable")
    (pid,) = lora_stack.engine_core_pids
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lora_stack.engine_core_pids not in ([pid], []), 60)
    wait_until(is_back, 180)
    for _ in range(4):
        after = ask(lora_stack, "durable")
        assert after.header == "durable@v1"
        assert after.tokens == before.tokens
    sync.push_adapter("durable", adapter(10), "v2", config=CONFIG)
    assert ask(lora_stack, "durable").header == "durable@v2"
