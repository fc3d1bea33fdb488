"""openai_frontend/guards/encoding.py, with vLLM's structs and its encoder."""

from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from openai_frontend.guards.encoding import encode_request
from openai_frontend.vllm_seam import EngineCoreRequest, encoder


def request(params: SamplingParams, **fields: Any) -> EngineCoreRequest:
    made = EngineCoreRequest(
        request_id="r",
        prompt_token_ids=[1],
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_an_ordinary_request_is_encoded() -> None:
    assert encode_request(encoder(), request(SamplingParams(stop=["é"])))


@pytest.mark.parametrize(
    ("field", "made"),
    [
        ("stop", request(SamplingParams(stop=["\ud83e"]))),
        ("top_k", request(SamplingParams(top_k=2**70))),
        ("priority", request(SamplingParams(), priority=2**70)),
        ("request_id", request(SamplingParams(), request_id="\ud83e")),
    ],
)
def test_the_field_without_an_encoding_is_named(field: str, made: EngineCoreRequest) -> None:
    with pytest.raises(VLLMValidationError, match=f"^{field}: cannot be sent to the engine") as refused:
        encode_request(encoder(), made)
    assert refused.value.parameter == field
