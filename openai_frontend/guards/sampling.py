"""Sampling parameters that vLLM takes and its sampler cannot compute with.

vLLM 0.32 checks in doubles and samples in float32 (`SamplingParams._verify_args`, v1/sample): a value beyond float32
becomes infinity, and the logits NaN. It bounds `logit_bias` on OpenAI's routes only, and takes a priority of any size
from the header x-vllm-priority, which msgpack then cannot encode.
"""

import math
import struct

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from tritonlive.wire.limits import MAX_INT64


def check_sampling(params: SamplingParams, priority: int) -> None:
    """Raises VLLMValidationError, which names the parameter."""
    penalty = params.repetition_penalty
    if penalty != 1.0 and not (is_float32(penalty) and is_float32(1 / penalty)):
        raise refused("repetition_penalty", "is too large or too small for the sampler", penalty)
    for token, bias in (params.logit_bias or {}).items():
        if not is_float32(bias):
            raise refused("logit_bias", f"the bias of token {token} is too large for the sampler", bias)
    if not -MAX_INT64 <= priority <= MAX_INT64:
        raise refused("priority", "has more than 64 bits", None)


def is_float32(value: float) -> bool:
    """Whether `value` is finite in float32."""
    try:
        return math.isfinite(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return False


def refused(name: str, reason: str, value: float | None) -> VLLMValidationError:
    return VLLMValidationError(f"{name}: {reason}", parameter=name, value=value)
