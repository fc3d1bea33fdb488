"""Tests that need a trained model: SmolLM2 in float32, as `make serve` runs it."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from transformers import AutoModelForCausalLM

from sync import WeightSync
from tests.stack.conftest import read_metric
from tritonlive.launch import Stack, StackConfig

TOLERANCE = 1e-3
NUM_TOKENS = 200
PROMPT = "The history of the city of Paris begins"


@pytest.fixture(scope="module")
def smollm2_stack(
    stack_config: StackConfig, smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    config = replace(
        stack_config,
        model=str(smollm2_dir),
        api_key=None,
        log_dir=tmp_path_factory.mktemp("smollm2-logs"),
    )
    with Stack(config) as running:
        running.wait_ready(240)
        yield running
        running.kill()  # a stop takes seconds, and other tests check it


def served(stack: Stack) -> tuple[list[int], list[float], int]:
    """Returns prompt and sampled token ids, the logprob of each sampled token, and the prompt's length."""
    body = {
        "model": "tiny",
        "prompt": PROMPT,
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "logprobs": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    choice = httpx.post(f"{stack.frontend_url}/v1/completions", json=body, timeout=300).json()["choices"][0]
    prompt = choice["prompt_token_ids"]
    return prompt + choice["token_ids"], choice["logprobs"]["token_logprobs"], len(prompt)


@torch.inference_mode()
def largest_difference(stack: Stack, model: torch.nn.Module) -> float:
    tokens, logprobs, prompt_len = served(stack)
    assert len(logprobs) == NUM_TOKENS
    logits = model(torch.tensor([tokens])).logits[0, prompt_len - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens[prompt_len:])[:, None])[:, 0]
    return (expected - torch.tensor(logprobs)).abs().max().item()


@pytest.fixture(scope="module")
def smollm2(smollm2_stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{smollm2_stack.frontend_url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


def test_the_capital_of_france(smollm2: OpenAI) -> None:
    answer = smollm2.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=20)
    assert answer.choices[0].message.content == "The capital of France is Paris."


def test_many_requests_at_once_share_executions(smollm2_stack: Stack) -> None:
    async def ask_all() -> list[str | None]:
        url = f"{smollm2_stack.frontend_url}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="tiny",
                        messages=[{"role": "user", "content": f"Count to {i}"}],
                        temperature=0,
                        max_tokens=8,
                    )
                    for i in range(64)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    inferences, executions = counts(smollm2_stack)
    assert all(asyncio.run(ask_all()))
    inferences_after, executions_after = counts(smollm2_stack)
    assert inferences_after - inferences >= 64
    assert executions_after - executions < 48, "Triton's dynamic batcher put requests together"


def count_to(number: int) -> Any:
    return [{"role": "user", "content": f"Count to {number}"}]


def counts(stack: Stack) -> tuple[float, float]:
    """Returns (nv_inference_count, nv_inference_exec_count)."""
    inferences, executions = (
        read_metric(stack.metrics_url, name) for name in ("nv_inference_count", "nv_inference_exec_count")
    )
    return inferences, executions


def test_a_named_tool_is_called_with_arguments_that_fit_its_schema(smollm2: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": schema, "strict": True}}]
    answer = smollm2.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        temperature=0,
        max_tokens=200,
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    jsonschema.validate(json.loads(call.function.arguments), schema)


# Last, since it leaves other weights behind.
def test_served_logprobs_are_the_models_before_and_after_a_push(smollm2_stack: Stack, smollm2_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    differences = {"before": largest_difference(smollm2_stack, model)}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * parameter.std() * torch.randn_like(parameter))
    with WeightSync(smollm2_stack.frontend_url, backend="gloo", control_key=smollm2_stack.control_key) as sync:
        sync.push(model, version="perturbed")
    differences["after"] = largest_difference(smollm2_stack, model)
    print(f"largest difference over {NUM_TOKENS} tokens: {differences}")  # noqa: T201 (the figure is the point)
    assert max(differences.values()) <= TOLERANCE
