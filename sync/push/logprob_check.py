"""The logprob check: whether the replicas compute what the trainer's own model computes.

Digests prove that the right bytes arrived. Whether they were loaded correctly (fused, tied, packed, quantized) shows
only in the model's results.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sync.control.client import ControlClient
from sync.control.fleet import Fleet
from sync.deadline import Deadline
from sync.errors import VerifyError

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class CanaryReport:
    """Differences between served and own logprobs of every prompt token but the first of each prompt."""

    version: str
    num_tokens: int
    largest: float
    mean: float
    targets: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.version} at {', '.join(self.targets)}: {self.num_tokens} logprobs differ from the trainer's "
            f"by {self.largest:.2e} at most, {self.mean:.2e} on average"
        )


@torch.no_grad()
def own_logprobs(model: torch.nn.Module, prompts: Prompts) -> list[torch.Tensor]:
    """float32[len(prompt) - 1] for each prompt: log p(token | the tokens before it), by a forward pass of `model`.

    `model` is a transformers causal LM: `model(input_ids).logits`. It is run in its own dtype, in evaluation mode.
    """
    was_training = model.training
    model.eval()
    try:
        found = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)
            logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
            found.append(logprobs.gather(-1, ids[0, 1:, None])[:, 0].cpu())
        return found
    finally:
        model.train(was_training)


def compare_all(fleet: Fleet, model: torch.nn.Module, prompts: Prompts, deadline: Deadline) -> CanaryReport:
    """The largest differences of all replicas. Raises ControlError, DeadlineError, VerifyError as `compare`."""
    own = own_logprobs(model, prompts)
    return worst(fleet.each("score", lambda client, seconds: compare(client, prompts, own, seconds), deadline))


def compare(client: ControlClient, prompts: Prompts, own: Sequence[torch.Tensor], timeout: float) -> CanaryReport:
    """Ask one replica for the same logprobs. Raises ControlError; VerifyError when some are not finite."""
    answer: dict[str, Any] = client.score([list(prompt) for prompt in prompts], timeout)
    rows = [[math.nan if value is None else value for value in row] for row in answer["logprobs"]]
    served = torch.cat([torch.tensor(row, dtype=torch.float32) for row in rows])
    difference = (served - torch.cat(list(own))).abs()
    report = CanaryReport(
        answer["weight_version"],
        difference.numel(),
        difference.max().item(),
        difference.mean().item(),
        (str(client.target),),
    )
    if not difference.isfinite().all():
        raise VerifyError(f"{client.target} serves logprobs that are NaN or infinite: {report}")
    return report


def worst(reports: Sequence[CanaryReport]) -> CanaryReport:
    """The largest differences of several replicas, under all their names."""
    return CanaryReport(
        " and ".join(sorted({report.version for report in reports})),
        sum(report.num_tokens for report in reports),
        max(report.largest for report in reports),
        max(report.mean for report in reports),
        tuple(target for report in reports for target in report.targets),
    )
