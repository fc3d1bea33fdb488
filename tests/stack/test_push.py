"""A trainer process replaces the weights while clients stream."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from tritonlive.launch import Stack

from . import trainer_process
from .conftest import MODEL


@pytest.fixture
def push(stack: Stack, tiny_model_dir: Path) -> Callable[[str, str, float], None]:
    """push(target, version, scale): from another process, with the MLPs' weights multiplied."""

    def run(target: str, version: str, scale: float) -> None:
        trainer_process.push(target, stack.control_key, tiny_model_dir, version, scale)

    return run


def greedy(openai: OpenAI) -> tuple[str, str | None]:
    """Returns (text, x-weight-version)."""
    answer: Any = openai.completions.with_raw_response.create(
        model=MODEL, prompt="Once upon", temperature=0, max_tokens=24
    )
    return answer.parse().choices[0].text, answer.headers.get("x-weight-version")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_weights_change_under_running_streams_and_come_back_exactly(
    stack: Stack,
    openai: OpenAI,
    async_openai: AsyncOpenAI,
    push: Callable[[str, str, float], None],
    protocol: str,
) -> None:
    target = stack.frontend_url if protocol == "http" else f"grpc://{stack.grpc_url}"
    original, version_before = greedy(openai)

    async def stream(i: int) -> int:
        events = await async_openai.completions.create(
            model=MODEL,
            prompt=f"Story {i}",
            temperature=0,
            max_tokens=400,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        usage = 0
        async for event in events:
            usage = event.usage.completion_tokens if event.usage else usage
        return usage

    async def streams_with_a_push() -> list[int]:
        async with async_openai:
            streams = [asyncio.create_task(stream(i)) for i in range(16)]
            await asyncio.sleep(0.2)
            await asyncio.to_thread(push, target, f"{protocol}-perturbed", 1.7)
            return await asyncio.gather(*streams)

    assert asyncio.run(streams_with_a_push()) == [400] * 16, "no stream breaks or loses a token"
    perturbed, version = greedy(openai)
    assert perturbed != original
    assert version == f"{protocol}-perturbed" != version_before
    push(target, f"{protocol}-restored", 1.0)
    assert greedy(openai) == (original, f"{protocol}-restored")


def test_a_cached_prefix_of_old_weights_is_not_reused(
    stack: Stack,
    openai: OpenAI,
    push: Callable[[str, str, float], None],
    triton: Callable[[dict[str, Any]], httpx.Response],
) -> None:
    body = {"input_ids": [5] * 600, "sampling_parameters": '{"max_tokens": 1}', "return_token_ids": True}
    triton(body)
    assert triton(body).json()["num_cached_tokens"] > 0
    push(stack.frontend_url, "flush", 1.01)
    assert triton(body).json()["num_cached_tokens"] == 0
    assert triton(body).json()["num_cached_tokens"] > 0
    push(stack.frontend_url, "restored", 1.0)
    assert triton(body).json()["num_cached_tokens"] == 0
    push(stack.frontend_url, "relabelled", 1.0)
    assert triton(body).json()["num_cached_tokens"] > 0, "a push that changes nothing leaves the cache as it is"


def test_a_trainers_routes(trainer: httpx.Client) -> None:
    assert trainer.get("/get_world_size").json() == {"world_size": 1}
    assert trainer.get("/replica_status").json()["state"] == "serving"
    assert trainer.get("/server_info?config_format=json").json()["vllm_config"]["weight_transfer_config"] is not None
    checksums = trainer.post("/weight_checker", json={"action": "checksum"}).json()["checksums"]
    assert trainer.post("/weight_checker", json={"action": "compare", "baseline": checksums}).json()["match"] is True
    assert trainer.post("/reset_prefix_cache").json() == {"success": True}


def test_pause_holds_generation_and_resume_lets_it_go(trainer: httpx.Client, openai: OpenAI) -> None:
    assert trainer.post("/pause?mode=keep").status_code == 200
    try:
        assert trainer.get("/is_paused").json() == {"is_paused": True}
        assert trainer.get("/replica_status").json()["state"] == "paused"
        with pytest.raises(Exception, match="timed out"):
            openai.with_options(timeout=1).completions.create(model=MODEL, prompt="x", max_tokens=1)
    finally:
        assert trainer.post("/resume").status_code == 200
    assert openai.completions.create(model=MODEL, prompt="x", max_tokens=1).usage is not None


@pytest.mark.parametrize(
    ("path", "body"),
    [("/update_weights", {"update_info": {}}), ("/finish_weight_update", {"weight_version": "never"})],
)
def test_an_update_that_was_not_started_is_a_conflict(trainer: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = trainer.post(path, json=body)
    assert answer.status_code == 409
    assert "start_weight_update" in answer.json()["error"]["message"]


def test_wrong_init_info_is_refused(trainer: httpx.Client) -> None:
    answer = trainer.post("/init_weight_transfer_engine", json={"init_info": {"nonsense": 1}})
    assert answer.status_code == 400
    assert trainer.get("/replica_status").json()["state"] == "serving"
