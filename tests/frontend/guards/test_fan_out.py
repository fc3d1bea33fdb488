"""openai_frontend/guards/fan_out.py: limits of generations."""

import pytest
from vllm.exceptions import VLLMValidationError

from openai_frontend.guards.fan_out import QueueFull, check_fan_out, check_queue
from openai_frontend.guards.limits import Limits

LIMITS = Limits(max_n=4, max_prompts=3, max_generations=8, max_queued=20)


@pytest.mark.parametrize(
    ("num_prompts", "n", "parameter", "option"),
    [
        (1, 5, "n", "--max-n"),
        (4, 1, "prompts", "--max-prompts"),
        (3, 3, "n", "--max-generations"),
        (10**9, 10**9, "n", "--max-n"),
    ],
)
def test_what_is_too_much_is_named_with_its_option(num_prompts: int, n: int, parameter: str, option: str) -> None:
    with pytest.raises(VLLMValidationError, match=option) as refused:
        check_fan_out(LIMITS, num_prompts, n, prompts_field="prompts")
    assert refused.value.parameter == parameter


@pytest.mark.parametrize(("num_prompts", "n"), [(1, 4), (3, 2), (2, 4), (0, 1)])
def test_what_is_allowed_passes(num_prompts: int, n: int) -> None:
    check_fan_out(LIMITS, num_prompts, n, prompts_field="prompts")


def test_a_full_queue_is_503_and_what_never_fits_400() -> None:
    check_queue(LIMITS, 16, 4)
    with pytest.raises(QueueFull, match="--max-queued is 20") as full:
        check_queue(LIMITS, 17, 4)
    assert full.value.http_status == 503
    with pytest.raises(VLLMValidationError, match="--max-n"):
        check_queue(LIMITS, 0, 16384)
