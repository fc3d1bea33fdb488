"""The GRPO example with the tiny model, three steps: the trained weights serve afterwards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from examples.grpo_cpu import PICTURE, main
from sync import WeightSync
from sync.trl.client import VLLMClient, uninstall

# Warnings of torch, transformers and TRL during training do not concern tritonlive.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 3
PROMPT = [504, 3575, 282, 4649, 314]


@pytest.fixture
def client(trl_stack, trainer_url, tiny_model_dir) -> Iterator[VLLMClient]:
    with VLLMClient(trainer_url) as client:
        yield client
    with WeightSync(trl_stack.frontend_url, backend="gloo", control_key=trl_stack.control_key) as sync:
        sync.push(load_file(tiny_model_dir / "model.safetensors"), "default")  # as other tests expect it


def logprobs(model_dir: Path, sequence: list[int]) -> torch.Tensor:
    """transformers' log-probabilities of the sequence's tokens but the first: float32 [len - 1]."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    ids = torch.tensor([sequence])
    with torch.inference_mode():
        scores = model(ids).logits.log_softmax(-1)
    return scores[0, :-1].gather(1, ids[0, 1:, None])[:, 0]


def test_three_steps(client, trainer_url, tiny_model_dir, tmp_path):
    try:
        main(steps=STEPS, out=tmp_path, url=trainer_url, model="tiny")
    finally:
        uninstall()
    steps = json.loads((tmp_path / "steps.json").read_text())
    numbers = [int(step["version"].removeprefix("step-")) for step in steps]
    assert numbers == list(range(numbers[0], numbers[0] + STEPS))
    assert all(min(step["rollout_s"], step["train_s"], step["push_s"]) > 0 for step in steps)
    assert (tmp_path / PICTURE).stat().st_size > 10_000

    answer = client.generate([PROMPT], temperature=0, max_tokens=8, generation_kwargs={"ignore_eos": True})
    (completion,) = answer["completion_ids"]
    assert client.served_version == f"step-{numbers[-1] + 1}"  # the outcome of the last step
    sequence = PROMPT + completion
    (served,) = client.get_sequence_logprobs([sequence], [1], top_logprobs=0)["actual_logprobs"]
    trained = logprobs(tmp_path / "model", sequence)
    assert torch.tensor(served)[:, 0].tolist() == pytest.approx(trained.tolist(), abs=2e-3)
    assert (trained - logprobs(tiny_model_dir, sequence)).abs().max() > 0.1  # and training did change it
