"""tritonlive/wire/plain_values.py: what every process can encode, and the limits of sampling parameters."""

from typing import Any

import pytest

from tritonlive.wire.limits import MAX_NESTING, MAX_STRING_CHARACTERS, SAMPLING_LENGTHS
from tritonlive.wire.plain_values import find_problem, find_sampling_problem


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"stop": ["a", "\ud800"]}, "stop[1]: holds text that UTF-8 cannot encode"),
        ({"extra_args": {"a": {"b": 2**70}}}, "extra_args.a.b: must be an integer of at most 64 bits"),
        ({"seed": -(2**63) - 1}, "seed: must be an integer of at most 64 bits"),
        ({"temperature": float("nan")}, "temperature: must be a finite number, is nan"),
        ({"a": {"\udc00": 1}}, "a: has a name that UTF-8 cannot encode"),
        ({"\udc00": 1}, "has a name that UTF-8 cannot encode"),
        (nested(MAX_NESTING + 1), f"is nested more than {MAX_NESTING} levels deep"),
        (nested(100_000), f"is nested more than {MAX_NESTING} levels deep"),
    ],
)
def test_what_cannot_be_encoded_is_named(value: Any, problem: str) -> None:
    assert str(find_problem(value, "")) == problem


@pytest.mark.parametrize(
    "value", [{}, {"a": [1, -1.5, None, True, "é🙂\0"], "b": {"c": 2**63 - 1}}, nested(MAX_NESTING), "text", 3]
)
def test_plain_values_have_no_problem(value: Any) -> None:
    assert find_problem(value, "") is None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"max_tokens": 10**12}, "max_tokens: must be in [1, 2147483647], is 1000000000000"),
        ({"seed": 2**70}, "seed: must be in [-9223372036854775808, 9223372036854775807], is an integer of 71 bits"),
        ({"max_tokens": 10**10_000}, "max_tokens: must be in [1, 2147483647], is an integer of 33220 bits"),
        ({"top_k": -2}, "top_k: must be in [-1, 2147483647], is -2"),
        ({"stop": ["a"] * 129}, "stop: holds 129 values, at most 128 are allowed"),
        ({"stop": "a" * 4097}, f"stop: holds a text of 4097 characters, at most {MAX_STRING_CHARACTERS}"),
        (
            {"bad_words": ["b", "a" * 4097]},
            f"bad_words: holds a text of 4097 characters, at most {MAX_STRING_CHARACTERS}",
        ),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias: holds 1025 values, at most 1024 are allowed"),
    ],
)
def test_what_is_too_large_is_named(values: dict[str, Any], problem: str) -> None:
    assert str(find_sampling_problem(values)) == problem


def test_what_is_missing_is_passed_over() -> None:
    assert find_sampling_problem({"max_tokens": None, "stop": [], "seed": 2**63 - 1, "temperature": 1e308}) is None


def test_the_limits_are_for_parameters_of_vllm() -> None:
    from vllm.sampling_params import SamplingParams

    from tritonlive.wire.limits import SAMPLING_RANGES

    assert SAMPLING_RANGES.keys() | SAMPLING_LENGTHS.keys() <= set(SamplingParams.__struct_fields__)
