"""Rollouts as arrays equal what /v1/completions gives in JSON; a cancelled call frees the engine."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from sync import ConflictError, DeadlineError, InvalidError, Rollouts
from sync.rollouts.batches import WeightSpan
from tritonlive.launch import Stack

from .conftest import MODEL, wait_until

PROMPTS = [[504, 3575, 282, 4649, 314], [1, 2], list(range(100, 140))]
# Long enough to be caught running: the tiny model makes thousands of tokens a second.
LONG: dict[str, Any] = {"n": 64, "max_tokens": 1900, "ignore_eos": True}
# The promise is one second. The machine is busy, and the metric is up to half a second old.
FREED_WITHIN_S = 3.0
CLIENT = """
import sys
from sync import Rollouts
Rollouts(sys.argv[1], api_key=sys.argv[2]).generate([[1, 2]], n=64, max_tokens=1900, ignore_eos=True)
"""


@pytest.fixture(scope="module")
def rollouts(stack: Stack) -> Iterator[Rollouts]:
    with Rollouts(f"grpc://{stack.grpc_url}", api_key=stack.api_key, timeout=120) as client:
        yield client


@pytest.fixture
def choices(frontend: httpx.Client) -> Callable[..., list[dict[str, Any]]]:
    def complete(prompts: list[list[int]], **params: Any) -> list[dict[str, Any]]:
        body: dict[str, Any] = {
            "model": MODEL,
            "prompt": prompts,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        answer = frontend.post("/v1/completions", json=body | params)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"]

    return complete


@pytest.fixture
def is_free(metric: Callable[[str], float]) -> Callable[[], bool]:
    return lambda: metric("vllm:num_requests_running") == metric("vllm:kv_cache_usage_perc") == 0


def numbers(tops: dict[str, float]) -> dict[int, float]:
    return {int(token.removeprefix("token_id:")): logprob for token, logprob in tops.items()}


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1.0, "seed": 7, "n": 4}], ids=["greedy", "n"])
@pytest.mark.parametrize("logprobs", [0, 3])
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_generated_as_by_completions(
    rollouts: Rollouts, choices: Callable[..., Any], prompt: list[int], logprobs: int, params: dict[str, Any]
) -> None:
    batch = rollouts.generate([prompt], logprobs=logprobs, max_tokens=12, **params)
    expected = choices([prompt], logprobs=logprobs, max_tokens=12, **params)
    assert batch.lengths.shape == (1, params.get("n", 1))
    assert np.split(batch.token_ids, batch.offsets[1:-1])[-1].tolist() == expected[-1]["token_ids"]
    assert batch.token_ids.tolist() == [token for choice in expected for token in choice["token_ids"]]
    assert batch.finish_reasons == [[choice["finish_reason"] for choice in expected]]
    said = [logprob for choice in expected for logprob in choice["logprobs"]["token_logprobs"]]
    assert batch.logprobs is not None
    assert batch.top_token_ids is not None
    assert batch.top_logprobs is not None
    np.testing.assert_allclose(batch.logprobs, said, atol=1e-5)
    rows = [numbers(row) for choice in expected for row in choice["logprobs"]["top_logprobs"]]
    for ids, tops, row in zip(batch.top_token_ids.tolist(), batch.top_logprobs.tolist(), rows, strict=True):
        assert {token: pytest.approx(top, abs=1e-5) for token, top in zip(ids, tops, strict=True) if token >= 0} == row


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_scored_as_by_completions(rollouts: Rollouts, choices: Callable[..., Any], prompt: list[int]) -> None:
    scores = rollouts.score([prompt], top_k=5)
    (choice,) = choices([prompt], prompt_logprobs=5, max_tokens=1)
    said = [{int(token): entry for token, entry in row.items()} for row in choice["prompt_logprobs"][1:]]
    assert scores.lengths.tolist() == [len(said)]
    own = [row[token]["logprob"] for token, row in zip(prompt[1:], said, strict=True)]
    np.testing.assert_allclose(scores.logprobs, own, atol=1e-5)
    ranked = [sorted(row.items(), key=lambda item: item[1]["rank"])[:5] for row in said]
    assert scores.top_token_ids.tolist() == [[token for token, _ in row] for row in ranked]
    np.testing.assert_allclose(scores.top_logprobs, [[e["logprob"] for _, e in row] for row in ranked], atol=1e-5)


def test_many_prompts_and_sequences_that_end_by_themselves(rollouts: Rollouts) -> None:
    prompts = [[504, number] for number in range(1, 33)]
    batch = rollouts.generate(prompts, n=3, max_tokens=20, seed=1, temperature=1.0, stop_token_ids=[*range(1000)])
    assert batch.lengths.shape == (32, 3)
    assert batch.lengths.sum() == batch.token_ids.size
    ended = np.array(batch.finish_reasons) == "stop"
    assert ended.any()
    last = batch.token_ids[batch.offsets[1:] - 1].reshape(32, 3)
    assert ((last < 1000) == ended).all(), "a stop token is the last of its sequence"
    version = batch.weight_versions[0][0][0].version
    expected = [[[WeightSpan(version, 0, length)] for length in row] for row in batch.lengths.tolist()]
    assert batch.weight_versions == expected


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stop": ["x"]}, "sampling_parameters: stop"),
        ({"temperature": -1}, "sampling_parameters: temperature"),
        ({"heat": 1}, "sampling_parameters: unknown 'heat'"),
        ({"logprobs": 1000}, "sampling_parameters: Requested sample logprobs"),
        ({"n": 10**9}, "sampling_parameters: n "),
        ({"prompts": [[1, 999_999]]}, "input_ids"),
        ({"prompts": [[1], [1] * 3000]}, "input_ids"),
    ],
)
def test_bad_input_is_named_and_harms_nobody(rollouts: Rollouts, params: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"prompts": [[1, 2]], **params}
    with pytest.raises(InvalidError, match=message):
        rollouts.generate(**arguments)
    assert rollouts.generate([[1, 2]], max_tokens=1).token_ids.size == 1


def test_newer_weights_than_served_are_refused(rollouts: Rollouts) -> None:
    with pytest.raises(ConflictError, match="min_weight_version"):
        rollouts.score([[1, 2]], min_weight_version="not-yet-1")


def test_a_deadline_frees_the_engine(rollouts: Rollouts, is_free: Callable[[], bool]) -> None:
    with pytest.raises(DeadlineError):
        rollouts.generate([[1, 2]], timeout=1, **LONG)
    wait_until(is_free, FREED_WITHIN_S)


def test_one_bad_prompt_frees_the_engine_of_the_others(rollouts: Rollouts, is_free: Callable[[], bool]) -> None:
    with pytest.raises(InvalidError, match="input_ids"):
        rollouts.generate([[1, 2], [999_999]], **LONG)
    wait_until(is_free, FREED_WITHIN_S)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=lambda sent: sent.name)
def test_a_client_that_goes_frees_the_engine(
    stack: Stack, metric: Callable[[str], float], is_free: Callable[[], bool], sent: signal.Signals
) -> None:
    command = [sys.executable, "-c", CLIENT, f"grpc://{stack.grpc_url}", stack.api_key or ""]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as client:
        wait_until(lambda: metric("vllm:num_requests_running") > 0, 60)
        client.send_signal(sent)
    wait_until(is_free, FREED_WITHIN_S)


def test_a_stream_beside_rollouts_gets_all_of_its_tokens(rollouts: Rollouts, frontend: httpx.Client) -> None:
    body: dict[str, Any] = {"model": MODEL, "prompt": PROMPTS[0], "max_tokens": 300, "temperature": 0}
    body |= {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    stop = threading.Event()

    def roll() -> None:
        while not stop.is_set():
            rollouts.generate(PROMPTS, n=4, max_tokens=32, temperature=1.0, ignore_eos=True)

    threads = [threading.Thread(target=roll) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with frontend.stream("POST", "/v1/completions", json=body) as answer:
            *_, usage, last = [line for line in answer.iter_lines() if line]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert last == "data: [DONE]"
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 300
