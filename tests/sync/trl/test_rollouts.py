"""Arrays in TRL's form, equal to those that TRL's own client parses from vLLM's JSON."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sync.rollouts.batches import RolloutBatch, Scores, WeightSpan
from sync.trl.client import TRLClient, vllm_client
from sync.trl.rollouts import RolloutsClient, needs_no_text

BATCH = RolloutBatch(
    token_ids=np.array([5, 6, 7], np.int32),
    lengths=np.array([[2, 1]], np.int32),
    logprobs=np.array([-0.5, -3.0, -np.inf], np.float32),
    top_token_ids=np.array([[5, 9, -1], [8, 9, 6], [9, 8, 7]], np.int32),
    top_logprobs=np.array([[-0.5, -1.0, -np.inf], [-0.25, -2.0, -3.0], [-0.5, -1.5, -np.inf]], np.float32),
    finish_reasons=[["length", "length"]],
    weight_versions=[[[WeightSpan("v1", 0, 2)], [WeightSpan("v2", 0, 1)]]],
)
# The same in vLLM's JSON, where -inf is -9999.0 and the sampled token is one of the top or one more.
CHOICES: list[dict[str, Any] | None] = [
    {
        "tokens": ["token_id:5", "token_id:6"],
        "token_logprobs": [-0.5, -3.0],
        "top_logprobs": [
            {"token_id:5": -0.5, "token_id:9": -1.0},
            {"token_id:6": -3.0, "token_id:8": -0.25, "token_id:9": -2.0},
        ],
    },
    {
        "tokens": ["token_id:7"],
        "token_logprobs": [-9999.0],
        "top_logprobs": [{"token_id:7": -9999.0, "token_id:9": -0.5, "token_id:8": -1.5}],
    },
]
SCORES = Scores(
    lengths=np.array([2, 1], np.int32),
    logprobs=np.array([-1.0, -4.0, -0.5], np.float32),
    top_token_ids=np.array([[8, 5], [9, 8], [3, 4]], np.int32),
    top_logprobs=np.array([[-0.5, -1.0], [-0.25, -0.75], [-0.5, -2.0]], np.float32),
    weight_versions=["v1", "v2"],
)
PROMPT_LOGPROBS: list[list[Any]] = [
    [
        None,
        {"5": {"logprob": -1.0, "rank": 2}, "8": {"logprob": -0.5, "rank": 1}},
        {
            "6": {"logprob": -4.0, "rank": 7},
            "9": {"logprob": -0.25, "rank": 1},
            "8": {"logprob": -0.75, "rank": 2},
        },
    ],
    [None, {"3": {"logprob": -0.5, "rank": 1}, "4": {"logprob": -2.0, "rank": 2}}],
]


class FakeRollouts:
    """Returns the given answer and records its arguments."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def generate(self, prompts: list[list[int]], **params: Any) -> RolloutBatch:
        self.asked = {"prompts": prompts, **params}
        return BATCH

    def score(self, sequences: list[list[int]], **params: Any) -> Scores:
        self.asked = {"sequences": sequences, **params}
        return SCORES


@pytest.fixture
def client() -> Any:
    client = object.__new__(RolloutsClient)
    vars(client).update(rollouts=FakeRollouts(), served_version=None)
    return client


def test_generated_as_trl_reads_it(client: Any) -> None:
    answer = client.generate([[1, 2]], n=2, logprobs=2, max_tokens=4, generation_kwargs={"seed": 3})
    logprobs, ids = vllm_client.parse_logprobs(CHOICES)
    assert answer == {
        "prompt_ids": [[1, 2]],
        "completion_ids": [[5, 6], [7]],
        "logprobs": logprobs,
        "logprob_token_ids": ids,
    }
    assert client.served_version == "v2"
    asked = client.rollouts.asked
    assert (asked["prompts"], asked["n"], asked["seed"], asked["max_tokens"], asked["top_k"]) == ([[1, 2]], 2, 3, 4, 0)
    assert not {"generation_kwargs", "features", "structured_outputs_regex"} & asked.keys()


def test_a_regex_is_a_structured_output(client: Any) -> None:
    client.generate([[1]], structured_outputs_regex="a+")
    assert client.rollouts.asked["structured_outputs"] == {"regex": "a+"}


def test_scored_as_trl_reads_it(client: Any) -> None:
    sequences, lengths = [[4, 5, 6], [2, 3]], [2, 1]
    answer = client.get_sequence_logprobs(sequences, lengths, top_logprobs=2, temperature=0.5)
    rows = [
        TRLClient._format_sequence_logprobs({"prompt_logprobs": scored}, sequence, length, 2)
        for scored, sequence, length in zip(PROMPT_LOGPROBS, sequences, lengths, strict=True)
    ]
    assert answer == {key: [row[key] for row in rows] for key in rows[0]}
    assert client.rollouts.asked == {"sequences": sequences, "top_k": 2, "temperature": 0.5}


@pytest.mark.parametrize(
    ("prompts", "others", "expected"),
    [
        ([[1]], {}, True),
        (["text"], {}, False),
        ([[1]], {"features": [{}]}, False),
        ([[1]], {"generation_kwargs": {"stop": ["x"]}}, False),
        ([[1]], {"generation_kwargs": {"seed": 1}}, True),
    ],
)
def test_what_needs_text_stays_with_the_front_end(
    prompts: list[Any], others: dict[str, Any], *, expected: bool
) -> None:
    given = SimpleNamespace(features=None, generation_kwargs=None)
    vars(given).update(others)
    assert needs_no_text(prompts, given.features, given.generation_kwargs, n=1) is expected
