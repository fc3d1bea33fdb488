"""Prompt logprobs with LoRA on a CPU, which end the engine in vLLM 0.32.

vLLM computes the logits of a prompt's tokens with the adapter indices of the step's *sampled* tokens. On a CPU the two
must have the same number of rows, or there must be one sampled token: a request with `prompt_logprobs` beside any other
one raises "einsum(): subscript b has size 13 for operand 1 …" in the engine core, which dies. `--enable-lora` is
enough; the requests need not use an adapter. Found by bench/soak; no upstream issue is known.
"""

from functools import cache
from typing import Any

import torch


@cache
def mend() -> None:
    """Give vLLM's CPU code for LoRA an `add_lora_logits` that takes any number of rows. Only the first call counts."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    add_lora_logits = PunicaWrapperCPU.add_lora_logits

    def mended(self: Any, y: torch.Tensor, x: torch.Tensor, *arguments: Any, **options: Any) -> None:
        if is_of_sampled_tokens(x, self.sampler_indices):
            add_lora_logits(self, y, x, *arguments, **options)

    setattr(PunicaWrapperCPU, "add_lora_logits", mended)  # noqa: B010 - a method of another package's class


def is_of_sampled_tokens(hidden: torch.Tensor, sampler_indices: torch.Tensor) -> bool:
    """Whether the rows of `hidden` [..., hidden size] are the sampled tokens' (one adapter index each), or one's.

    Otherwise they are a prompt's. Their logits then lack the adapter's part of `lm_head`, which hardly any adapter has.
    """
    return sampler_indices.numel() in (1, hidden.numel() // hidden.shape[-1])
