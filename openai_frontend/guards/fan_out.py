"""Limits on how many generations one request makes, and how many wait, checked before the first one is made.

vLLM 0.32 takes n up to 16,384 (`VLLM_MAX_N_SEQUENCES`) for each of 1,024 prompts (`VLLM_MAX_COMPLETION_PROMPTS`), and
queues without limit unless `--max-num-queued-reqs` is given.
"""

from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from openai_frontend.guards.limits import Limits


class QueueFull(GracefulHTTPError):
    """503: as many generations wait and run as may."""

    def __init__(self, num_queued: int, limit: int) -> None:
        super().__init__(
            f"{num_queued} generations wait or run, and the server's --max-queued is {limit}; try again later",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )


def check_fan_out(limits: Limits, num_prompts: int, n: int, *, prompts_field: str) -> None:
    """Raises VLLMValidationError, which names the field and the option.

    n: answers to each prompt. prompts_field: the request's field with the prompts.
    """
    if n > limits.max_n:
        raise VLLMValidationError(f"n: at most {limits.max_n}, the server's --max-n", parameter="n", value=n)
    if num_prompts > limits.max_prompts:
        raise VLLMValidationError(
            f"{prompts_field}: at most {limits.max_prompts} prompts, the server's --max-prompts",
            parameter=prompts_field,
            value=num_prompts,
        )
    if num_prompts * n > limits.max_generations:
        raise VLLMValidationError(
            f"n: at most {limits.max_generations} answers to all prompts together, the server's --max-generations",
            parameter="n",
            value=num_prompts * n,
        )


def check_queue(limits: Limits, num_queued: int, num_new: int) -> None:
    """Raises QueueFull, and VLLMValidationError for a request that would not fit into an empty queue either."""
    if num_new > limits.max_generations:
        check_fan_out(limits, 1, num_new, prompts_field="prompt")
    if num_queued + num_new > limits.max_queued:
        raise QueueFull(num_queued, limits.max_queued)
