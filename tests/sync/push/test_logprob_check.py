"""Served logprobs beside the trainer's own."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sync import VerifyError
from sync.push.logprob_check import compare, own_logprobs, worst

PROMPTS = [[1, 2, 3], [4, 5]]


class Model(torch.nn.Module):
    """Always the same distribution over 6 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.arange(6.0))

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        assert not self.training
        return SimpleNamespace(logits=self.logits.expand(*ids.shape, 6))


def client(rows: list[list[float | None]]) -> Any:
    return SimpleNamespace(
        target="http://here:9000", score=lambda prompts, timeout: {"logprobs": rows, "weight_version": "v3"}
    )


def test_own_logprobs_are_those_of_the_next_tokens_and_leave_the_mode():
    model = Model().train()
    expected = torch.arange(6.0).log_softmax(-1)
    found = own_logprobs(model, PROMPTS)
    torch.testing.assert_close(found, [expected[[2, 3]], expected[[5]]])
    assert model.training


def test_the_largest_difference_counts():
    own = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])]
    report = compare(client([[-1.0, -2.5], [-3.0]]), PROMPTS, own, 5)
    assert (report.version, report.num_tokens, report.largest) == ("v3", 3, 0.5)
    assert report.mean == pytest.approx(0.5 / 3)
    assert "3 logprobs differ from the trainer's by 5.00e-01 at most" in str(report)
    assert worst([report, report]).num_tokens == 6


@pytest.mark.parametrize("served", [None, -math.inf])
def test_what_is_no_number_is_an_error(served: float | None):
    with pytest.raises(VerifyError, match="NaN or infinite"):
        compare(client([[served, -2.0], [-3.0]]), PROMPTS, [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])], 5)
