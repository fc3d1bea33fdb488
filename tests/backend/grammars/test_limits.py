"""Limits of size and shape."""

from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tritonlive.backend.grammars.limits import GrammarLimits, number_of_values
from tritonlive.backend.tensors import BadTensor
from tritonlive.wire.environment import GRAMMAR_VARIABLES

LIMITS = GrammarLimits(max_bytes=200, max_values=10)


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "a" * 200},
        {"json": {"enum": ["a", "b", "c"]}},
        {"json": '{"const": "1,2,3,4,5,6,7,8,9,10,11,12,13"}'},  # commas within a string are no values
        {"choice": ["a", "b"]},
        {"grammar": 'root ::= "a"'},
        {"json_object": True},
    ],
)
def test_an_ordinary_grammar_passes(fields: dict[str, Any]) -> None:
    LIMITS.check(StructuredOutputsParams(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regex": "a" * 201}, r"regex: is longer than 200 bytes \(--grammar-max-bytes\)"),
        ({"regex": "é" * 101}, "regex: is longer than 200 bytes"),
        ({"grammar": "a" * 201}, "grammar: is longer"),
        ({"json": {"const": "a" * 200}}, "json: is longer"),
        ({"json": '"' + "a" * 200 + '"'}, "json: is longer"),
        ({"structural_tag": "{" + " " * 200 + "}"}, "structural_tag: is longer"),
        ({"choice": ["a" * 200]}, "choice: is longer"),
        ({"json": {"enum": list(range(11))}}, r"json: has more than 10 values \(--grammar-max-values\)"),
        ({"json": {"properties": {f"p{i}": {} for i in range(11)}}}, "json: has more than 10 values"),
        ({"choice": [str(i) for i in range(11)]}, "choice: has more than 10 values"),
        ({"json": "{1,2,3,4,5,6,7,8,9,10,11,12"}, "json: is not JSON"),
    ],
)
def test_one_beyond_a_limit_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadTensor, match=f"structured_outputs: {message}"):
        LIMITS.check(StructuredOutputsParams(**fields))


def test_a_schema_becomes_text_once() -> None:
    params = StructuredOutputsParams(json={"type": "object"})
    assert LIMITS.check(params) == 'json {"type": "object"}'
    assert params.json == '{"type": "object"}'


def test_values_are_counted_at_all_depths() -> None:
    assert number_of_values({"a": [1, 2, {"b": "c"}], "d": {}}) == 6


def test_the_environment_sets_limits() -> None:
    set_to = dict.fromkeys(GRAMMAR_VARIABLES.values(), "3")
    assert GrammarLimits.from_environment(set_to) == GrammarLimits(3, 3, 3.0, 3)
    assert GrammarLimits.from_environment({}) == GrammarLimits()


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan"])
def test_a_limit_that_is_no_positive_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"TRITONLIVE_GRAMMAR_TIMEOUT={text}"):
        GrammarLimits.from_environment({"TRITONLIVE_GRAMMAR_TIMEOUT": text})
