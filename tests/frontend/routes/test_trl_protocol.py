"""The legacy TRL bodies, and their conversion from vLLM's outputs."""

import base64
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from vllm.exceptions import VLLMValidationError
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from openai_frontend.routes.trl_protocol import (
    LOWEST_LOGPROB,
    ChatRequest,
    GenerateRequest,
    SequenceLogprobsRequest,
    completions,
    ranked,
    sequence_logprobs_binary,
    sequence_logprobs_json,
    with_data_urls,
)

Row = tuple[list[int], list[float], int]


def flat(*rows: Row | None) -> FlatLogprobs:
    """Rows in vLLM's form: (the actual token and the top ones, their logprobs, the rank of the actual one)."""
    logprobs = FlatLogprobs()
    for row in rows:
        if row is None:
            logprobs.append(None)
        else:
            ids, values, rank = row
            logprobs.append_fast(ids, values, [rank, *range(1, len(ids))], [None] * len(ids))  # ty: ignore[invalid-argument-type]
    return logprobs


def output(prompt: list[int], *sequences: tuple[list[int], FlatLogprobs | None], prompt_logprobs: Any = None) -> Any:
    completed = [
        CompletionOutput(index, "", ids, None, logprobs, finish_reason="length")
        for index, (ids, logprobs) in enumerate(sequences)
    ]
    return RequestOutput("id", None, prompt, prompt_logprobs, completed, finished=True)


def test_a_position_is_ranked_with_the_sampled_token_among_it() -> None:
    (row,) = flat(([9, 4, 5], [-7.0, -1.0, -2.0], 50))
    assert ranked(row) == ([4, 5, 9], [-1.0, -2.0, -7.0])
    (row,) = flat(([5, 4, 5], [-2.0, -1.0, -2.0], 2))
    assert ranked(row) == ([4, 5], [-1.0, -2.0])


def test_nan_is_null_and_minus_infinity_is_vllms_floor() -> None:
    row = {1: Logprob(math.nan, 2), 2: Logprob(-0.5, 1), 3: Logprob(-math.inf, 3)}
    assert ranked(row) == ([2, 1, 3], [-0.5, None, LOWEST_LOGPROB])


def test_completions_are_prompt_major() -> None:
    logprobs = flat(([7], [-0.5], 1))
    outputs = [
        output([1, 2], ([7], logprobs), ([8], flat(([8], [-1.5], 3)))),
        output([3], ([9], flat(([9], [-2.5], 4))), ([7], logprobs)),
    ]
    assert completions(outputs) == {
        "prompt_ids": [[1, 2], [3]],
        "completion_ids": [[7], [8], [9], [7]],
        "logprobs": [[[-0.5]], [[-1.5]], [[-2.5]], [[-0.5]]],
        "logprob_token_ids": [[[7]], [[8]], [[9]], [[7]]],
    }


def test_without_logprobs_both_lists_are_null() -> None:
    answer = completions([output([1], ([7, 8], None))])
    assert (answer["logprobs"], answer["logprob_token_ids"]) == (None, None)
    assert answer["completion_ids"] == [[7, 8]]


TEACHER = output(
    [5, 6, 7],
    prompt_logprobs=flat(None, ([6, 1, 2], [-9.0, -1.0, -2.0], 30), ([7, 7, 3], [-0.5, -0.5, math.nan], 1)),
)
SHORT = output([5, 6], prompt_logprobs=flat(None, ([6, 1, 2], [-8.0, -1.0, -2.0], 30)))


def test_teacher_logprobs_as_json() -> None:
    answer = sequence_logprobs_json([TEACHER, TEACHER, SHORT], [0, 2, 2])
    assert answer["logprob_token_ids"] == [[[], [1, 2, 6], [7, 3]], [[7, 3]], []]
    assert answer["logprobs"] == [[[], [-1.0, -2.0, -9.0], [-0.5, None]], [[-0.5, None]], []]


def test_teacher_logprobs_as_arrays() -> None:
    answer = sequence_logprobs_binary([TEACHER, TEACHER, SHORT], [0, 2, 2], top_logprobs=2)
    assert answer["shape"] == [3, 3, 2]
    assert answer["completion_lengths"] == [3, 1, 0]

    def array(name: str, dtype: Any, width: int) -> np.ndarray:
        return np.frombuffer(base64.b64decode(answer[name]), dtype).reshape(3, 3, width)

    low = -np.inf
    top = array("logprobs_b64", np.float32, 2)
    assert top[0].tolist() == [[low, low], [-1.0, -2.0], [-0.5, low]]
    assert top[1].tolist() == [[-0.5, low], [low, low], [low, low]]
    assert top[2].tolist() == [[low, low]] * 3
    assert array("token_ids_b64", np.int32, 2)[0].tolist() == [[0, 0], [1, 2], [7, 3]]
    assert array("actual_logprobs_b64", np.float32, 1)[0].tolist() == [[low], [-9.0], [-0.5]]
    assert array("actual_token_ids_b64", np.int32, 1)[:, :, 0].tolist() == [[0, 6, 7], [7, 0, 0], [0, 0, 0]]


def test_generation_kwargs_win_over_the_fields() -> None:
    request = GenerateRequest(prompts=["x"], n=2, temperature=0.5, generation_kwargs={"n": 3, "seed": 7})
    params = request.to_sampling_params()
    assert (params.n, params.temperature, params.seed, params.logprobs) == (3, 0.5, 7, 0)
    assert params.output_kind is RequestOutputKind.FINAL_ONLY


def test_a_regex_wins_over_structured_outputs() -> None:
    request = ChatRequest(
        messages=[[{"role": "user", "content": "x"}]],
        structured_outputs_regex="a+",
        generation_kwargs={"structured_outputs": {"choice": ["b"]}},
    )
    outputs = request.to_sampling_params().structured_outputs
    assert outputs is not None
    assert (outputs.regex, outputs.choice) == ("a+", None)


def test_text_is_made_only_where_a_stop_string_needs_it() -> None:
    assert not GenerateRequest(prompts=["x"]).to_sampling_params().detokenize
    assert GenerateRequest(prompts=["x"], generation_kwargs={"stop": "\n"}).to_sampling_params().detokenize


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"n": 10**9}, "n must be at most"),
        ({"n": 0}, "n must be at least 1"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": -2}, "logprobs"),
        ({"generation_kwargs": {"no_such": 1}}, "generation_kwargs: unknown no_such"),
        ({"generation_kwargs": {"skip_clone": True}}, "generation_kwargs: unknown skip_clone"),
        ({"generation_kwargs": {"_eos_token_id": 1}}, "generation_kwargs: unknown _eos_token_id"),
        ({"generation_kwargs": {"seed": "x"}}, "seed: "),
        ({"generation_kwargs": {"structured_outputs": {"regex": "a", "choice": ["b"]}}}, "structured outputs"),
    ],
)
def test_bad_sampling_parameters_are_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(VLLMValidationError, match=field):
        GenerateRequest(prompts=["x"], **values).to_sampling_params()


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([1], "1 lengths for 2 sequences"), ([3, 0], r"prompt_lengths\[0\]: 3"), ([0, -1], r"prompt_lengths\[1\]: -1")],
)
def test_prompt_lengths_must_fit(lengths: list[int], message: str) -> None:
    request = SequenceLogprobsRequest(sequences=[[1, 2], [3]], prompt_lengths=lengths)
    with pytest.raises(VLLMValidationError, match=message):
        request.to_sampling_params()


@pytest.mark.parametrize("values", [{"sequences": []}, {"top_logprobs": -1}, {"response_format": "pickle"}])
def test_a_bad_teacher_request_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        SequenceLogprobsRequest.model_validate({"sequences": [[1]], "prompt_lengths": [0], **values})


def test_pil_images_become_data_urls() -> None:
    text = {"type": "text", "text": "What is this?"}
    conversation = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": [{"type": "image_pil", "image_pil": "QUJD"}, text]},
    ]
    system, user = with_data_urls(conversation)
    assert system == conversation[0]
    assert user["content"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}, text]
    assert conversation[1]["content"][0]["type"] == "image_pil", "the request is left as it was"
