"""vLLM's Rust front end over the real Triton: what it answers, and what clients see when a process dies."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import APIError, BadRequestError, OpenAI

from tritonlive.launch import Stack, StackConfig

from . import trainer_process
from .conftest import MODEL, bearer, read_metric, wait_until

PROMPT = "Once upon a time"
RECOVERY_S = 180
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}


@pytest.fixture(scope="module")
def rust_stack(stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    config = replace(stack_config, rust_port=0, log_dir=tmp_path_factory.mktemp("rust-logs"))
    with Stack(config) as running:
        running.wait_ready(RECOVERY_S)
        yield running


@pytest.fixture(scope="module")
def rust(rust_stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{rust_stack.rust_url}/v1", api_key=rust_stack.api_key, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def fastapi(rust_stack: Stack) -> Iterator[OpenAI]:
    url = f"{rust_stack.frontend_url}/v1"
    with OpenAI(base_url=url, api_key=rust_stack.api_key, max_retries=0, timeout=120) as client:
        yield client


def complete(client: OpenAI, **options: Any) -> Any:
    arguments: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    return client.completions.create(**arguments | options)


def child(stack: Stack, word: str) -> psutil.Process:
    """The process of the front end's session whose command line has that word."""
    found = []
    for process in stack.frontend.members():
        with suppress(psutil.NoSuchProcess):
            if any(word in part for part in process.cmdline()[:4]):
                found.append(process)
    (process,) = found
    return process


def status(stack: Stack) -> int | str:
    """Of the Rust port's /health."""
    try:
        return httpx.get(f"{stack.rust_url}/health", timeout=5).status_code
    except httpx.HTTPError as error:
        return type(error).__name__


def test_it_answers_as_the_other_front_end(rust: OpenAI, fastapi: OpenAI) -> None:
    logprobs: dict[str, Any] = {"logprobs": 3, "extra_body": {"return_token_ids": True}}
    ours, theirs = (complete(client, **logprobs).choices[0] for client in (rust, fastapi))
    assert (ours.text, ours.token_ids, ours.finish_reason) == (theirs.text, theirs.token_ids, theirs.finish_reason)
    assert ours.logprobs.token_logprobs == pytest.approx(theirs.logprobs.token_logprobs, abs=1e-5)
    streamed = "".join(chunk.choices[0].text for chunk in complete(rust, stream=True))
    assert streamed == ours.text


@pytest.mark.parametrize("options", [{"n": 2}, {"prompt": ["a", "b"]}])
def test_what_it_does_not_have_is_refused(rust: OpenAI, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        complete(rust, **options)


def test_chats_tools_and_schemas(rust: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Where?"}]
    answer: Any = rust.chat.completions.create(
        model=MODEL, messages=messages, extra_body={"structured_outputs": {"choice": ["Paris", "Rome"]}}
    )
    assert answer.choices[0].message.content in {"Paris", "Rome"}
    tools: Any = [{"type": "function", "function": {"name": "go", "parameters": CITY}}]
    choice: Any = {"type": "function", "function": {"name": "go"}}
    answer = rust.chat.completions.create(
        model=MODEL, messages=messages, tools=tools, tool_choice=choice, max_tokens=60, temperature=0
    )
    called: Any = answer.choices[0].message.tool_calls
    (call,) = called
    assert call.function.name == "go"  # this model may fill the arguments with white space to the end


def test_a_stop_string_ends_the_generation_in_the_engine(rust: OpenAI, rust_stack: Stack) -> None:
    whole = complete(rust, max_tokens=64).choices[0].text
    answer = complete(rust, max_tokens=64, stop=whole[10:14]).choices[0]
    assert (answer.finish_reason, answer.text) == ("stop", whole[: whole.index(whole[10:14])])
    wait_until(lambda: read_metric(rust_stack.metrics_url, "vllm:num_requests_running") == 0, 10)


def test_a_bad_request_is_refused_and_harms_nobody(rust: OpenAI) -> None:
    with pytest.raises(BadRequestError):
        complete(rust, temperature=-1)
    with pytest.raises(APIError):  # the model's refusal, which has no reason in the engine's protocol
        complete(rust, extra_body={"structured_outputs": {"regex": "(?=x)y"}})
    assert complete(rust).choices


@pytest.mark.row(67)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/models"])
def test_the_key_holds_there_too(rust_stack: Stack, path: str) -> None:
    method = "GET" if path.endswith("models") else "POST"
    for key in (None, "wrong", rust_stack.control_key):
        assert httpx.request(method, f"{rust_stack.rust_url}{path}", json={}, headers=bearer(key)).status_code == 401


@pytest.mark.row(67)
@pytest.mark.parametrize("path", ["/pause", "/collective_rpc", "/update_weights", "/v1/load_lora_adapter", "/sleep"])
def test_it_has_no_control_operations(rust_stack: Stack, path: str) -> None:
    for key in (rust_stack.api_key, rust_stack.control_key):
        answer = httpx.post(f"{rust_stack.rust_url}{path}", json={}, headers=bearer(key))
        assert answer.status_code in (401, 404)


@pytest.mark.row(67)
def test_no_key_can_be_read_by_other_users(rust_stack: Stack) -> None:
    for process in rust_stack.frontend.members():
        words = " ".join(process.cmdline())
        assert rust_stack.api_key not in words
        assert rust_stack.control_key not in words
    assert rust_stack.control_key not in child(rust_stack, "vllm-rs").environ().values()


def test_a_client_that_goes_frees_the_engine(rust_stack: Stack) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    url = f"{rust_stack.rust_url}/v1/completions"
    with ExitStack() as streams:
        for _ in range(32):
            answer = streams.enter_context(httpx.stream("POST", url, json=body, headers=bearer(rust_stack.api_key)))
            assert answer.status_code == 200, answer.read()
        wait_until(lambda: read_metric(rust_stack.metrics_url, "vllm:num_requests_running") > 0, 10)
    wait_until(lambda: read_metric(rust_stack.metrics_url, "vllm:num_requests_running") == 0, 10)


@pytest.mark.row(69)
def test_a_push_under_load_changes_the_next_answers(rust: OpenAI, rust_stack: Stack, tiny_model_dir: Path) -> None:
    before = complete(rust).choices[0].text
    failures: list[Exception] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            try:
                for _ in complete(rust, stream=True, max_tokens=200):
                    pass
            except APIError as error:
                failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        target = f"grpc://{rust_stack.grpc_url}"
        trainer_process.push(target, rust_stack.control_key, tiny_model_dir, "step-1", 3.0)
        changed = complete(rust).choices[0].text
        trainer_process.push(target, rust_stack.control_key, tiny_model_dir, "step-2", 1.0)
        restored = complete(rust).choices[0].text
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert (changed != before, restored) == (True, before)


def broken_stream(stack: Stack, break_it: Callable[[], None]) -> str:
    """How a stream ends that is broken after its first event: its last line, or the name of the connection's error."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    url, last = f"{stack.rust_url}/v1/completions", ""
    try:
        with httpx.stream("POST", url, json=body, headers=bearer(stack.api_key), timeout=20) as answer:
            assert answer.status_code == 200, answer.read()
            lines = answer.iter_lines()
            next(lines)
            break_it()
            for line in lines:
                last = line or last
    except httpx.HTTPError as error:
        return type(error).__name__
    return last


@pytest.mark.row(68)
@pytest.mark.parametrize("word", ["vllm-rs", "openai_frontend.rust"], ids=["Rust process", "bridge"])
def test_a_killed_process_breaks_streams_at_once_and_comes_back(rust: OpenAI, rust_stack: Stack, word: str) -> None:
    killed = child(rust_stack, word)
    ending = broken_stream(rust_stack, killed.kill)
    assert ending == "RemoteProtocolError", "the connection breaks; it does not hang"
    wait_until(lambda: read_metric(rust_stack.metrics_url, "vllm:num_requests_running") == 0, 10)
    wait_until(lambda: status(rust_stack) == 200, 60)
    assert complete(rust).choices
    assert child(rust_stack, word).pid != killed.pid


@pytest.mark.row(68)
def test_a_killed_engine_is_told_and_comes_back(rust: OpenAI, fastapi: OpenAI, rust_stack: Stack) -> None:
    (engine,) = rust_stack.engine_core_pids
    ending = broken_stream(rust_stack, lambda: os.kill(engine, signal.SIGKILL))
    assert '"error"' in ending or ending == "data: [DONE]", ending
    wait_until(lambda: status(rust_stack) != 200, 5)
    with pytest.raises(APIError):
        complete(rust)
    wait_until(lambda: status(rust_stack) == 200, RECOVERY_S)
    assert complete(rust).choices[0].text == complete(fastapi).choices[0].text


@pytest.mark.row(68)
def test_the_front_ends_end_leaves_nothing(rust_stack: Stack) -> None:
    """Last in this module."""
    members = [process.pid for process in rust_stack.frontend.members()]
    assert len(members) >= 3
    rust_stack.frontend.stop(30)
    assert [pid for pid in members if psutil.pid_exists(pid)] == []
    assert status(rust_stack) == "ConnectError"
