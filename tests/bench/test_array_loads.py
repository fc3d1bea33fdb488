"""Both sides of a trainer's call get the same work."""

import json
from typing import Any

import numpy as np
import pytest

import bench.array_client
from bench.array_client import ArrayJob, run_array_job
from bench.array_loads import ArrayLoad, Rollouts, TeacherScores
from bench.client import LoadError
from bench.server_load import WARM_UP_SEED
from sync import UnavailableError
from sync.rollouts.batches import Scores
from tests.bench.stand_ins import LocalServer, local_server

ROLLOUTS = Rollouts(num_prompts=3, prompt_tokens=4, samples=2, max_tokens=5)
SCORES = TeacherScores(num_prompts=2, prompt_tokens=4, top=3)


@pytest.mark.parametrize("load", [ROLLOUTS, SCORES])
def test_the_same_seed_gives_the_same_prompts_and_another_gives_others(load: ArrayLoad):
    one, other = load.job("grpc://a:1", "m", seed=1), load.job("http://b", "m", seed=1)
    assert (one.call, one.prompts, one.params) == (other.call, other.prompts, other.params)
    assert one.prompts != load.job("http://b", "m", seed=2).prompts
    assert [len(prompt) for prompt in one.prompts] == [4] * load.num_prompts


def test_a_call_has_the_samples_and_the_logprobs_it_is_about():
    assert (ROLLOUTS.name, SCORES.name) == ("rollouts/2 binary", "teacher/top3 binary")
    params = ROLLOUTS.job("", "m", seed=0).params
    assert (params["n"], params["logprobs"], params["max_tokens"], params["ignore_eos"]) == (2, 1, 5, True)
    assert SCORES.job("", "m", seed=0).params["top_k"] == 3


def answer(body: dict[str, Any]) -> tuple[int, bytes]:
    """As many tokens as requested, all equal."""
    num_tokens, row = body["max_tokens"], {"token_id:1": -0.5}
    logprobs = {"token_logprobs": [-0.5] * num_tokens, "top_logprobs": [row] * num_tokens}
    choice = {"finish_reason": "length", "token_ids": [1] * num_tokens, "logprobs": logprobs}
    return 200, json.dumps({"choices": [choice] * body["n"]}).encode()


def test_tokens_are_counted_in_the_arrays():
    with local_server(answer) as server:
        figures = ROLLOUTS.send(server, "m", seed=0)
    assert figures["completion tokens"] == 3 * 2 * 5
    assert figures["prompt tokens/s"] == pytest.approx(3 * 4 / figures["seconds"])
    assert figures["tokens/s"] == pytest.approx(30 / figures["seconds"])


def test_a_warm_up_is_the_whole_call_with_other_prompts(monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []
    monkeypatch.setattr(Rollouts, "send", lambda self, server, served_name, seed: seeds.append(seed))
    ROLLOUTS.warm_up(LocalServer("http://a"), "m")
    assert seeds == [WARM_UP_SEED]


class FakeRollouts:
    """Fake of `sync.Rollouts`. The second address has no server."""

    def __init__(self, target: str) -> None:
        self.target = target

    def score(self, sequences: list[list[int]], **params: Any) -> Scores:
        if self.target == "grpc://b:1":
            raise UnavailableError(self.target, "score", "nobody there")
        rows = sum(len(sequence) - 1 for sequence in sequences)
        tops = np.zeros((rows, params["top_k"]))
        return Scores(np.array([3, 3]), np.zeros(rows), tops, tops, [])


def test_a_grpc_address_gets_the_projects_own_client(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench.array_client, "Rollouts", FakeRollouts)
    outcome = bench.array_client.call(SCORES.job("grpc://a:1", "m", seed=0))
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (8, 0)
    with pytest.raises(LoadError, match="nobody there"):
        bench.array_client.call(SCORES.job("grpc://b:1", "m", seed=0))


def test_a_call_that_fails_voids_the_measurement():
    job = ArrayJob("http://127.0.0.1:1", "m", "score", [[1, 2]], {"top_k": 1})
    with pytest.raises(LoadError, match=r"127\.0\.0\.1:1"):
        run_array_job(job)
