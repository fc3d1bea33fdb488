"""Arrays from the engine as tensors: the same ones that text_tensors.py makes of vLLM's objects for the same rows."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from vllm.logprobs import append_logprobs_for_next_position
from vllm.outputs import CompletionOutput
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from tritonlive.backend.generation.sequences import TokenSequence, to_tensors
from tritonlive.backend.generation.text_tensors import token_logprobs

EVERYTHING = frozenset(
    ("finish_reason", "token_ids", "token_logprobs", "cumulative_logprob", "num_input_tokens", "prompt_token_ids")
)


def step(tokens: list[int], width: int, rng: np.random.Generator, *, among_top: bool | None = None) -> LogprobsLists:
    """Logprobs of sampled tokens: each row has the sampled token, then the `width` most likely of ten."""
    ids = np.array([[token, *rng.permutation(10)[:width]] for token in tokens], np.int32)
    if among_top is not None and width:
        ids[:, 1] = ids[:, 0] if among_top else 99
        ids[:, 2:] += 20
    logprobs = -np.sort(rng.random(ids.shape).astype(np.float32))
    position = (ids[:, 1:] == ids[:, :1]).argmax(axis=1) + 1 if width else np.zeros(len(tokens), int)
    is_among = (ids[:, 1:] == ids[:, :1]).any(axis=1)
    for row in np.flatnonzero(is_among):
        logprobs[row, 0] = logprobs[row, position[row]]
    logprobs[~is_among, 0] = -9
    return LogprobsLists(ids, logprobs, np.where(is_among, position, width + 5))


def collect(steps: list[LogprobsLists], **last: Any) -> Any:
    sequence = TokenSequence()
    for number, rows in enumerate(steps):
        is_last = number == len(steps) - 1
        tokens = rows.logprob_token_ids[:, 0].tolist()
        stats = None if number else PrefillStats(num_cached_tokens=2)
        reason = FinishReason.LENGTH if is_last else None
        extras = last if is_last else {}
        sequence.add(
            EngineCoreOutput("r", tokens, rows, prefill_stats=stats, finish_reason=reason, **extras), f"v{number // 2}"
        )
    return sequence


def as_vllm_has_it(steps: list[LogprobsLists], num_logprobs: int) -> CompletionOutput:
    rows: list[Any] = []
    for lists in steps:
        for ids, logprobs, rank in zip(*(part.tolist() for part in lists[:3]), strict=True):
            append_logprobs_for_next_position(rows, ids, logprobs, [None] * len(ids), rank, num_logprobs)
    tokens = [token for lists in steps for token in lists.logprob_token_ids[:, 0].tolist()]
    return CompletionOutput(0, "", tokens, None, rows)


@pytest.mark.parametrize("num_logprobs", [0, 1, 3, 5, -1])
@pytest.mark.parametrize("among_top", [True, False, None])
def test_the_same_as_from_vllms_objects(num_logprobs: int, among_top: bool | None) -> None:
    rng = np.random.default_rng(7)
    # Rows may be wider than requested, if another request of the same step needs wider ones.
    steps = [
        step([4], 5, rng, among_top=among_top),
        step([5, 6], max(num_logprobs, 5), rng, among_top=among_top),
        step([7], 5, rng),
    ]
    found = to_tensors([collect(steps), collect(steps[:1])], [1, 2, 3], EVERYTHING, num_logprobs)
    outputs = [as_vllm_has_it(steps, num_logprobs), as_vllm_has_it(steps[:1], num_logprobs)]
    for name, expected in token_logprobs(outputs).items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    assert found["cumulative_logprob"][0].tolist() == pytest.approx(
        [sum(row[token].logprob for token, row in zip(o.token_ids, o.logprobs or (), strict=True)) for o in outputs]
    )


def test_everything_else() -> None:
    rng = np.random.default_rng(0)
    first = collect([step([4], 0, rng), step([5], 0, rng), step([6, 7], 0, rng)], stop_reason=7)
    second = collect([step([8], 0, rng)])
    tensors = to_tensors([first, second], [1, 2, 3], EVERYTHING, 0)
    assert all(array.shape[0] == 1 for array in tensors.values()), "the batch dimension comes first"
    assert tensors["token_ids"][0].tolist() == [4, 5, 6, 7, 8]
    assert tensors["num_output_tokens"][0].tolist() == [4, 1]
    assert tensors["finish_reason"][0].tolist() == [b"length", b"length"]
    assert tensors["stop_reason"][0].tolist() == [b"7", b"null"]
    assert tensors["num_cached_tokens"][0].tolist() == [2]
    assert tensors["num_input_tokens"][0].tolist() == [3]
    assert tensors["prompt_token_ids"][0].tolist() == [1, 2, 3]
    assert json.loads(tensors["weight_version_spans"][0][0]) == [
        {"version": "v0", "start": 0, "end": 2},
        {"version": "v1", "start": 2, "end": 4},
    ]


def test_prompt_logprobs_are_the_engines_own_rows() -> None:
    tensors = LogprobsTensors(
        torch.tensor([[5, 9, 8], [6, 6, 7]], dtype=torch.int32),
        torch.tensor([[-4.0, -1.0, -2.0], [-0.5, -0.5, -3.0]]),
        torch.tensor([9, 1]),
    )
    sequence = TokenSequence()
    sequence.add(EngineCoreOutput("r", [1], new_prompt_logprobs_tensors=tensors), "v0")
    found = to_tensors([sequence], [4, 5, 6], frozenset(["prompt_token_logprobs"]), None)
    assert found["prompt_token_logprobs"][0].tolist() == [-4.0, -0.5]
    assert found["prompt_top_token_ids"][0].tolist() == [[9, 8], [6, 7]]
    assert found["prompt_top_logprobs"][0].tolist() == [[-1.0, -2.0], [-0.5, -3.0]]
    assert {found[name].dtype for name in found if name.startswith("prompt_")} == {
        np.dtype(np.float32),
        np.dtype(np.int32),
    }


def test_a_sequence_that_ended_before_it_began() -> None:
    sequence = TokenSequence()
    sequence.add(EngineCoreOutput("r", [], finish_reason=FinishReason.ABORT), None)
    tensors = to_tensors([sequence], [1], EVERYTHING | {"prompt_token_logprobs"}, 3)
    assert tensors["finish_reason"][0].tolist() == [b"abort"]
    assert tensors["num_output_tokens"][0].tolist() == [0]
    assert [
        tensors[name].shape for name in ("token_ids", "token_logprobs", "top_token_ids", "prompt_top_logprobs")
    ] == [
        (1, 0),
        (1, 0),
        (1, 0, 0),
        (1, 0, 0),
    ]
    assert np.isnan(tensors["cumulative_logprob"]).all()
    assert "weight_version" not in tensors
