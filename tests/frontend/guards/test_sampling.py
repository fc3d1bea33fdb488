"""openai_frontend/guards/sampling.py: parameters that float32 or msgpack cannot hold."""

from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from openai_frontend.guards.sampling import check_sampling


@pytest.mark.parametrize(
    ("name", "parameters", "priority"),
    [
        ("repetition_penalty", {"repetition_penalty": 1e39}, 0),
        ("repetition_penalty", {"repetition_penalty": 1e-50}, 0),
        ("logit_bias", {"logit_bias": {1: 0.5, 5: 1e300}}, 0),
        ("priority", {}, 2**70),
        ("priority", {}, -(2**70)),
    ],
)
def test_what_the_sampler_cannot_compute_is_named(name: str, parameters: dict[str, Any], priority: int) -> None:
    with pytest.raises(VLLMValidationError, match=name) as refused:
        check_sampling(SamplingParams(**parameters), priority)
    assert refused.value.parameter == name


def test_extreme_values_that_work_pass() -> None:
    check_sampling(SamplingParams(repetition_penalty=1e30, logit_bias={5: -1e30}), 2**63 - 1)
