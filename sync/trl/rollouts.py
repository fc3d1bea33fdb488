"""TRL's `generate` and `get_sequence_logprobs` over arrays from Triton instead of JSON, with the same results."""

import inspect
from itertools import pairwise
from typing import Any

import numpy as np
from trl.generation.vllm_client import VLLMClient as TRLClient

from sync.rollouts.rollouts import Rollouts

# vLLM's JSON has this value for a logprob of -inf.
LEAST_LOGPROB = -9999.0
GENERATE = inspect.signature(TRLClient.generate)
SEQUENCE_LOGPROBS = inspect.signature(TRLClient.get_sequence_logprobs)


class RolloutsClient(TRLClient):
    """TRL's client; requests that need only token ids go through `rollouts`, if set."""

    rollouts: Rollouts | None = None
    served_version: str | None

    def generate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        given = named(GENERATE.bind(self, *args, **kwargs))
        if self.rollouts is None or not needs_no_text(**given):
            return super().generate(*args, **kwargs)
        answer, self.served_version = generate(self.rollouts, **given)
        return answer

    def get_sequence_logprobs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        given = named(SEQUENCE_LOGPROBS.bind(self, *args, **kwargs))
        if (
            self.rollouts is None or min(given["prompt_lengths"], default=0) < 1
        ):  # a sequence's first token has no logprob
            return super().get_sequence_logprobs(*args, **kwargs)
        answer, self.served_version = sequence_logprobs(self.rollouts, **given)
        return answer


def named(bound: inspect.BoundArguments) -> dict[str, Any]:
    """All arguments of a call except `self`, with TRL's defaults."""
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name != "self"}


def needs_no_text(prompts: list[Any], features: Any, generation_kwargs: dict[str, Any] | None, **_: Any) -> bool:
    """Whether the prompts are token ids without images, and there are no stop strings."""
    is_text = not prompts or any(isinstance(prompt, str) for prompt in prompts)
    return features is None and not is_text and not (generation_kwargs or {}).get("stop")


def generate(
    rollouts: Rollouts,
    prompts: list[list[int]],
    features: None,
    structured_outputs_regex: str | None,
    generation_kwargs: dict[str, Any] | None,
    **params: Any,
) -> tuple[dict[str, Any], str | None]:
    """TRL's answer to `generate`, and the version of the weights that made the last token. Raises as `Rollouts`."""
    if structured_outputs_regex is not None:
        params["structured_outputs"] = {"regex": structured_outputs_regex}
    batch = rollouts.generate(prompts, **{**params, **(generation_kwargs or {})})
    answer: dict[str, Any] = {
        "prompt_ids": [list(prompt) for prompt in prompts],
        "completion_ids": [batch.token_ids[start:end].tolist() for start, end in pairwise(batch.offsets)],
        "logprobs": None,
        "logprob_token_ids": None,
    }
    if batch.top_token_ids is not None and batch.top_logprobs is not None:
        widths = (batch.top_token_ids >= 0).sum(axis=1).tolist()
        ids = [row[:width] for row, width in zip(batch.top_token_ids.tolist(), widths, strict=True)]
        values = [row[:width] for row, width in zip(shown(batch.top_logprobs).tolist(), widths, strict=True)]
        answer["logprob_token_ids"] = [ids[start:end] for start, end in pairwise(batch.offsets)]
        answer["logprobs"] = [values[start:end] for start, end in pairwise(batch.offsets)]
    spans = [spans for row in batch.weight_versions for spans in row if spans]
    return answer, spans[-1][-1].version if spans else None


def sequence_logprobs(
    rollouts: Rollouts,
    sequences: list[list[int]],
    prompt_lengths: list[int],
    top_logprobs: int,
    temperature: float,
    chunk_size: int,
    max_concurrent_requests: int,
) -> tuple[dict[str, Any], str | None]:
    """TRL's answer to `get_sequence_logprobs`, and the version of the weights. Raises as `Rollouts`, and ValueError.

    chunk_size, max_concurrent_requests: not used; every sequence is a separate request.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    scores = rollouts.score(sequences, top_k=top_logprobs, temperature=temperature)
    # Row i is about token i + 1.
    rows = [
        slice(start + length - 1, end)
        for (start, end), length in zip(pairwise(scores.offsets), prompt_lengths, strict=True)
    ]
    tops, own = shown(scores.top_logprobs), shown(scores.logprobs)
    completions = [sequence[length:] for sequence, length in zip(sequences, prompt_lengths, strict=True)]
    answer = {
        "logprobs": [tops[each].tolist() for each in rows],
        "logprob_token_ids": [scores.top_token_ids[each].tolist() for each in rows],
        "actual_logprobs": [own[each, np.newaxis].tolist() for each in rows],
        "actual_token_ids": [[[token] for token in completion] for completion in completions],
    }
    return answer, scores.weight_versions[-1]


def shown(logprobs: np.ndarray) -> np.ndarray:
    return np.maximum(logprobs, LEAST_LOGPROB)
