"""vLLM's requests to an engine core."""

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest


def engine_request(request_id: str) -> EngineCoreRequest:
    """A request of three prompt tokens for four."""
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=4),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
