"""Engines of several workers start on a CPU through Triton, answer like one of one worker, and end without orphans."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from tritonlive.launch import Stack, StackConfig

pytestmark = pytest.mark.stack

PROMPT = list(range(100, 120))
NUM_TOKENS = 8
PARALLEL = {"tp": ("--tensor-parallel-size", 1), "pp": ("--pipeline-parallel-size", 1), "dp": ("-dp", 2)}
"""Option that asks for two, and the engine cores that this takes."""


@pytest.fixture(scope="module", params=PARALLEL)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def parallel_stack(kind: str, stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    config = replace(
        stack_config,
        extra_args=("--dtype", "float32", "--enforce-eager", "--max-model-len", "128", PARALLEL[kind][0], "2"),
        log_dir=tmp_path_factory.mktemp(f"{kind}-logs"),
    )
    with Stack(config) as running:
        running.wait_ready(400)
        yield running


def complete(stack: Stack) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    body |= {"logprobs": 0, "return_token_ids": True}
    answer = httpx.post(f"{stack.frontend_url}/v1/completions", json=body, headers=headers, timeout=60)
    answer.raise_for_status()
    return answer.json()["choices"][0]


@pytest.fixture(scope="module")
def expected(tiny_model_dir: Path) -> tuple[list[int], list[float]]:
    """The greedy tokens and their logprobs, by transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    logprobs = []
    for _ in range(NUM_TOKENS):
        with torch.no_grad():
            row = model(ids).logits[0, -1].log_softmax(-1)
        token = int(row.argmax())
        logprobs.append(float(row[token]))
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return ids[0, len(PROMPT) :].tolist(), logprobs


def test_it_answers_as_transformers_does(parallel_stack: Stack, expected: tuple[list[int], list[float]]) -> None:
    tokens, logprobs = expected
    for _ in range(4):  # with data parallelism both engine cores answer
        choice = complete(parallel_stack)
        assert choice["token_ids"] == tokens
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(logprobs, abs=1e-3)


def test_its_engine_cores_are_found(kind: str, parallel_stack: Stack) -> None:
    assert len(parallel_stack.engine_core_pids) == PARALLEL[kind][1]


def test_after_the_death_of_an_engine_core_all_are_started_again(
    kind: str, parallel_stack: Stack, expected: tuple[list[int], list[float]]
) -> None:
    before = parallel_stack.engine_core_pids
    psutil.Process(before[-1]).send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 180
    while True:
        try:
            assert complete(parallel_stack)["token_ids"] == expected[0]
        except httpx.HTTPError:
            assert time.monotonic() < deadline, "the engine did not come back"
            time.sleep(1)
        else:
            break
    after = parallel_stack.engine_core_pids
    assert len(after) == PARALLEL[kind][1]
    assert not set(before) & set(after)


def test_nothing_is_left_when_it_has_stopped(parallel_stack: Stack) -> None:
    members = parallel_stack.triton.members()
    assert len(members) > 2
    parallel_stack.stop()
    assert [process for process in members if is_alive(process)] == []


def is_alive(process: psutil.Process) -> bool:
    """Not so of what has ended and waits for its parent to ask, which a container's first process may never do."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
