"""The JSON of vLLM's server becomes the same arrays as those of `Rollouts`."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bench.client import LoadError
from bench.json_rollouts import JsonRollouts
from tests.bench.stand_ins import local_server


def choice(token_ids: list[int], tops: list[dict[int, float]]) -> dict[str, Any]:
    """A sequence; each row of `tops` begins with the sampled token, as in vLLM's answers."""
    logprobs = {
        "text_offset": [0] * len(tops),
        "tokens": [f"token_id:{token}" for token in token_ids],
        "token_logprobs": [row[token] for token, row in zip(token_ids, tops, strict=True)],
        "top_logprobs": [{f"token_id:{token}": value for token, value in row.items()} for row in tops],
    }
    return {"index": 0, "text": "…", "token_ids": token_ids, "logprobs": logprobs, "finish_reason": "length"}


def entry(logprob: float) -> dict[str, Any]:
    return {"logprob": logprob, "rank": 1, "decoded_token": "x"}


SAMPLED = {
    (5, 6): [choice([1, 2], [{1: -0.5}, {2: -3.0, 9: -0.25}]), choice([3], [{3: -1.0}])],
    (7,): [choice([4], [{4: -2.0, 8: -0.5}]), choice([9], [{9: -0.5}])],
}
SCORED = {
    (5, 6, 7): [None, {"6": entry(-4.0), "1": entry(-0.5), "2": entry(-1.5)}, {"7": entry(-0.5), "3": entry(-2.0)}],
    (8, 9): [None, {"9": entry(-1.0), "4": entry(-0.5)}],
}


class Asked:
    """Answers as vLLM does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        self.bodies.append(body)
        if body["model"] == "broken":
            return 500, b"no such engine"
        prompt = tuple(body["prompt"])
        if "prompt_logprobs" in body:
            choices = [{"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": SCORED[prompt]}]
        else:
            choices = SAMPLED[prompt]
        return 200, json.dumps({"id": "a", "choices": choices, "usage": {"prompt_tokens": 3}}).encode()


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def url(asked: Asked) -> Iterator[str]:
    with local_server(asked.answer) as server:
        yield server.url


def test_sequences_come_flat_in_the_prompts_order_and_the_likeliest_first(url: str, asked: Asked):
    batch = JsonRollouts(url, "m").generate([[5, 6], [7]], n=2, logprobs=1, max_tokens=2, temperature=1.0)
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 9]
    assert batch.lengths.tolist() == [[2, 1], [1, 1]]
    assert batch.logprobs is not None
    assert batch.top_token_ids is not None
    assert batch.top_logprobs is not None
    assert batch.logprobs.tolist() == [-0.5, -3.0, -1.0, -2.0, -0.5]
    assert batch.top_token_ids.tolist() == [[1, -1], [9, 2], [3, -1], [8, 4], [9, -1]]
    assert batch.top_logprobs.tolist() == [[-0.5, -np.inf], [-0.25, -3], [-1, -np.inf], [-0.5, -2], [-0.5, -np.inf]]
    arrays = (batch.token_ids, batch.lengths, batch.logprobs, batch.top_token_ids, batch.top_logprobs)
    assert [str(array.dtype) for array in arrays] == ["int32", "int32", "float32", "int32", "float32"]
    assert batch.finish_reasons == [["length"] * 2] * 2
    same = {"model": "m", "n": 2, "logprobs": 1, "max_tokens": 2, "temperature": 1.0, "return_token_ids": True}
    assert all(body.items() >= same.items() for body in asked.bodies)


def test_scores_have_the_sequences_own_tokens_and_only_the_likeliest_beside_them(url: str, asked: Asked):
    scores = JsonRollouts(url, "m").score([[5, 6, 7], [8, 9]], top_k=2, temperature=0)
    assert scores.lengths.tolist() == [2, 1]
    assert scores.logprobs.tolist() == [-4.0, -0.5, -1.0]
    assert scores.top_token_ids.tolist() == [[1, 2], [7, 3], [4, 9]]
    assert scores.top_logprobs.tolist() == [[-0.5, -1.5], [-0.5, -2.0], [-0.5, -1.0]]
    arrays = (scores.lengths, scores.logprobs, scores.top_token_ids, scores.top_logprobs)
    assert [str(array.dtype) for array in arrays] == ["int32", "float32", "int32", "float32"]
    assert [(body["max_tokens"], body["prompt_logprobs"]) for body in asked.bodies] == [(1, 2)] * 2


def test_an_error_is_the_servers_own(url: str):
    with pytest.raises(LoadError, match="no such engine"):
        JsonRollouts(url, "broken").score([[8, 9]], top_k=2)
