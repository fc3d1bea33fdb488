"""vLLM's RequestOutputs as tensors."""

import json

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput, WeightVersionSpan

from tritonlive.backend.generation.native_request import RETURNS
from tritonlive.backend.generation.text_tensors import logprobs_json, to_tensors


def output_of_two() -> RequestOutput:
    def sequence(index: int, tokens: list[int]) -> CompletionOutput:
        rows = [{t: Logprob(-1.0, 2, "x"), 9: Logprob(-0.5, 1, "y")} for t in tokens]
        spans = [WeightVersionSpan("v1", 0, 1), WeightVersionSpan("v2", 1, len(tokens))]
        return CompletionOutput(index, "ab"[:index], tokens, -2.0, rows, finish_reason="stop", weight_versions=spans)

    sequences = [sequence(0, [4, 5]), sequence(1, [6, 7, 8])]
    return RequestOutput("r", None, [1, 2, 3], None, sequences, finished=True, num_cached_tokens=2)


def test_outputs_become_tensors() -> None:
    tensors = to_tensors(output_of_two(), frozenset(RETURNS), "prompt ")
    assert all(array.shape[0] == 1 for array in tensors.values()), "the batch dimension comes first"
    assert tensors["text_output"][0].tolist() == [b"prompt ", b"prompt a"]
    assert tensors["num_output_tokens"][0].tolist() == [2, 3]
    assert tensors["token_ids"][0].tolist() == [4, 5, 6, 7, 8]
    assert tensors["token_logprobs"][0].tolist() == [-1.0] * 5
    assert tensors["top_token_ids"][0].tolist() == [[9, 4], [9, 5], [9, 6], [9, 7], [9, 8]]
    assert tensors["top_logprobs"].shape == (1, 5, 2)
    assert tensors["prompt_token_ids"][0].tolist() == [1, 2, 3]
    assert tensors["num_cached_tokens"][0].tolist() == [2]
    assert tensors["weight_version"][0].tolist() == [b"v2"]


def test_spans_say_which_weights_made_which_tokens() -> None:
    output = output_of_two()
    output.outputs[1].weight_versions = None  # still running
    first, second = to_tensors(output, frozenset())["weight_version_spans"][0]
    assert json.loads(first) == [
        {"version": "v1", "start": 0, "end": 1},
        {"version": "v2", "start": 1, "end": 2},
    ]
    assert second == b"[]"


def test_only_what_was_asked_for_is_sent() -> None:
    tensors = to_tensors(output_of_two(), frozenset())
    assert set(tensors) == {"text_output", "weight_version", "weight_version_spans"}


def test_a_nan_logprob_is_null_in_json() -> None:
    rows = [{1: Logprob(float("nan"), 1, "x"), 2: Logprob(float("-inf"), 2, "y")}]
    sequence = CompletionOutput(0, "x", [1], None, rows)
    assert logprobs_json(sequence).count("null") == 2
