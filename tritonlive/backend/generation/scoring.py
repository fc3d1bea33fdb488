"""Logprobs of given tokens, for a trainer that compares them with its own."""

import asyncio
import math
import uuid

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import BadTensor
from tritonlive.wire.tensor_names import CONTROL_ARGUMENTS


async def prompt_logprobs(engine: Engine, prompts: list[list[int]]) -> list[list[float | None]]:
    """For each prompt (token ids), log p(token | the tokens before it) of all its tokens but the first.

    prompts: at least one, each of two tokens or more. A log-probability that is not finite becomes None.

    Raises BadTensor for what vLLM does not accept.
    """
    return list(await asyncio.gather(*(_score(engine, prompt) for prompt in prompts)))


async def _score(engine: Engine, prompt: list[int]) -> list[float | None]:
    params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
    answers = engine.llm.generate(TokensPrompt(prompt_token_ids=prompt), params, f"score-{uuid.uuid4().hex}")
    try:
        async for answer in answers:
            rows = answer.prompt_logprobs or []
            found = [row[token].logprob for row, token in zip(rows, prompt, strict=True) if row is not None]
            return [value if math.isfinite(value) else None for value in found]
    except (VLLMValidationError, ValueError) as error:
        raise BadTensor(CONTROL_ARGUMENTS, f"of score: {error}") from None
    return []
