"""sync/worker/lora_logits.py, with vLLM's own CPU code for LoRA."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

from sync.worker import lora_logits

HIDDEN, VOCABULARY, RANK, SLOTS = 8, 12, 4, 2

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="about vLLM on a CPU")


@pytest.fixture
def _mended() -> Iterator[None]:
    before = PunicaWrapperCPU.add_lora_logits
    lora_logits.mend.__wrapped__()
    yield
    setattr(PunicaWrapperCPU, "add_lora_logits", before)  # noqa: B010 - a method of another package's class


def added(rows: int, indices: list[int]) -> torch.Tensor:
    """What is added to the logits of `rows` tokens, in a step that samples one token for each of `indices`."""
    torch.manual_seed(0)
    wrapper: Any = SimpleNamespace(sampler_indices=torch.tensor(indices))
    down, up = torch.randn(SLOTS, 1, RANK, HIDDEN), torch.randn(SLOTS, 1, VOCABULARY, RANK)
    logits = torch.zeros(rows, VOCABULARY)
    PunicaWrapperCPU.add_lora_logits(wrapper, logits, torch.randn(rows, HIDDEN), down, up, 1.0)
    return logits


def test_without_it_a_prompt_beside_other_requests_raises() -> None:
    with pytest.raises(RuntimeError, match="einsum"):
        added(rows=7, indices=[0, 1, 0])


@pytest.mark.usefixtures("_mended")
def test_a_prompt_beside_other_requests_gets_its_logits() -> None:
    assert torch.equal(added(rows=7, indices=[0, 1, 0]), torch.zeros(7, VOCABULARY))


@pytest.mark.parametrize(("rows", "indices"), [(3, [0, 1, 0]), (1, [1])])
def test_sampled_tokens_get_what_they_got_before(rows: int, indices: list[int], request: pytest.FixtureRequest) -> None:
    before = added(rows, indices)
    request.getfixturevalue("_mended")
    assert before.abs().sum() > 0
    assert torch.equal(added(rows, indices), before)
