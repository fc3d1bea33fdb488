"""The calls of `sync.Rollouts` over `/v1/completions`: the work of a trainer whose server answers in JSON."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import uvloop

from bench.client import answer_to, open_session
from sync.rollouts.batches import RolloutBatch, Scores, spread

TOKEN = "token_id:"  # noqa: S105 - prefix of a token's text with `return_tokens_as_token_ids`


class Logprob(msgspec.Struct, gc=False):
    """One entry of `prompt_logprobs`: one of the most likely tokens at a position."""

    logprob: float


class TokenLogprobs(msgspec.Struct, gc=False):
    """Logprobs of a sequence, by position."""

    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    """By position: the sampled token, then the most likely ones."""


class Choice(msgspec.Struct, gc=False):
    """The fields of a choice that are used. The decoder skips all others."""

    finish_reason: str
    token_ids: list[int] | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """By position: the prompt's token, then the most likely ones. None for the first token."""


class Answer(msgspec.Struct, gc=False):
    choices: list[Choice]


class JsonRollouts:
    """`generate` and `score` at an OpenAI server of vLLM; returns the same arrays as `sync.Rollouts`.

    As in `sync.Rollouts`, each prompt is a request and all are sent at once, so the server can answer one while it
    computes another. Each answer is decoded when it arrives, and only the fields that are used. This keeps the
    client's share of the time small.

    Args:
        url: address of the server, without `/v1`.
        model: served name of the model.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url = f"{url}/v1/completions"
        self._model = model

    def generate(self, prompts: Sequence[list[int]], *, logprobs: int, **sampling_params: Any) -> RolloutBatch:
        """Generate sequences for each prompt. Raises LoadError."""
        asked = {"logprobs": logprobs, "return_token_ids": True, "return_tokens_as_token_ids": True}
        answers = self._complete(prompts, sampling_params | asked)
        choices = [choice for answer in answers for choice in answer.choices]
        said = [choice.logprobs for choice in choices if choice.logprobs]
        rows = [row for each in said for row in each.top_logprobs]
        top_token_ids, top_logprobs = likeliest_first(
            rows,
            (int(token.removeprefix(TOKEN)) for row in rows for token in row),
            (logprob for row in rows for logprob in row.values()),
        )
        return RolloutBatch(
            token_ids=np.fromiter(chain.from_iterable(choice.token_ids or () for choice in choices), np.int32),
            lengths=np.array([[len(choice.token_ids or ()) for choice in each.choices] for each in answers], np.int32),
            logprobs=np.fromiter(chain.from_iterable(each.token_logprobs for each in said), np.float32),
            top_token_ids=top_token_ids,
            top_logprobs=top_logprobs,
            finish_reasons=[[choice.finish_reason for choice in answer.choices] for answer in answers],
            weight_versions=[],
        )

    def score(self, sequences: Sequence[list[int]], *, top_k: int, **sampling_params: Any) -> Scores:
        """Logprobs of given sequences, and of the top_k most likely tokens at each position. Raises LoadError."""
        answers = self._complete(sequences, sampling_params | {"max_tokens": 1, "prompt_logprobs": top_k})
        parts = [[row for row in answer.choices[0].prompt_logprobs or () if row] for answer in answers]
        rows = list(chain.from_iterable(parts))
        own = chain.from_iterable(sequence[1:] for sequence in sequences)
        top_token_ids, top_logprobs = likeliest_first(
            rows, chain.from_iterable(rows), (entry.logprob for row in rows for entry in row.values())
        )
        return Scores(
            lengths=np.array([len(part) for part in parts], np.int32),
            logprobs=np.array([row[token].logprob for row, token in zip(rows, own, strict=True)], np.float32),
            top_token_ids=top_token_ids[:, :top_k],  # the sequence's own token may be an additional entry
            top_logprobs=top_logprobs[:, :top_k],
            weight_versions=[],
        )

    def _complete(self, prompts: Sequence[list[int]], params: dict[str, Any]) -> list[Answer]:
        """Send all requests at once; returns the answers in the order of the prompts."""
        return uvloop.run(self._gather([json.dumps(params | self._prompt(prompt)).encode() for prompt in prompts]))

    def _prompt(self, prompt: list[int]) -> dict[str, Any]:
        return {"model": self._model, "prompt": prompt}

    async def _gather(self, payloads: list[bytes]) -> list[Answer]:
        async with open_session() as session:

            async def ask(payload: bytes) -> Answer:
                async with answer_to(session, self._url, payload) as response:
                    return msgspec.json.decode(await response.read(), type=Answer)

            return await asyncio.gather(*map(ask, payloads))


def likeliest_first(
    rows: Sequence[dict[Any, Any]], token_ids: Iterable[int], logprobs: Iterable[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Arrays [rows, N] of flat entries: int32 token ids, padded with -1, and float32 logprobs, padded with -inf."""
    sizes = np.array([len(row) for row in rows])[:, None]
    mask = np.arange(sizes.max(initial=0)) < sizes
    ids = spread(np.fromiter(token_ids, np.int32), mask, -1)
    values = spread(np.fromiter(logprobs, np.float32), mask, -np.inf)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
