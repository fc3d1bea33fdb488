"""A native request: read from its tensors, and checked."""

from dataclasses import dataclass
from typing import Any

import msgspec
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind, SamplingParams

from tritonlive.backend.tensors import (
    BadTensor,
    parse_json_object,
    read_array,
    read_bool,
    read_json_object,
    read_string,
)
from tritonlive.backend.vllm_seam.requests import SAMPLING_PARAMETERS

# Outputs that a request asks for with return_<name>.
RETURNS = (
    "finish_reason",
    "cumulative_logprob",
    "logprobs",
    "num_input_tokens",
    "num_output_tokens",
    "token_ids",
    "prompt_token_ids",
    "token_logprobs",
    "prompt_token_logprobs",
)
# Set here and not by a client: the transport decides how outputs come.
RESERVED_PARAMETERS = frozenset({"output_kind", "skip_clone"})
CLIENT_PARAMETERS = SAMPLING_PARAMETERS - RESERVED_PARAMETERS
# Request parameters that Triton itself adds. All others are sampling parameters, as in vllm_backend.
TRITON_PARAMETERS = ("triton_", "sequence_", "priority", "timeout", "headers", "binary_data_output")


@dataclass(frozen=True)
class NativeRequest:
    """A native request after `read_request`."""

    prompt: str | list[int]
    params: SamplingParams
    stream: bool
    prepend_prompt: bool
    returns: frozenset[str]
    min_weight_version: str | None = None
    lora_name: str | None = None
    return_text: bool = True


def read_request(request: Any) -> NativeRequest:
    """Read a Triton request. Raises BadTensor with the name of the tensor at fault."""
    text, ids = read_string(request, "text_input"), read_array(request, "input_ids")
    if text is not None and ids is not None:
        raise BadTensor("text_input", "give either text_input or input_ids, not both")
    prompt = text if ids is None else ids.tolist()
    if prompt is None:
        raise BadTensor("text_input", "give either text_input or input_ids")
    stream = bool(read_bool(request, "stream"))
    exclude = read_bool(request, "exclude_input_in_output", default=None)
    if stream and exclude is False:
        raise BadTensor("exclude_input_in_output", "must be true (or left out) when streaming")
    if text is None and exclude is False:
        raise BadTensor(
            "exclude_input_in_output", "must be true (or left out) with input_ids: there is no text to prepend"
        )
    returns = frozenset(name for name in RETURNS if read_bool(request, f"return_{name}"))
    values = read_sampling_parameters(request)
    lora_name = values.pop("lora_name", None)
    if lora_name is not None and not isinstance(lora_name, str):
        raise BadTensor("sampling_parameters", "lora_name must be the name of a pushed adapter")
    checked = NativeRequest(
        prompt=prompt,
        params=to_sampling_params(values, stream),
        stream=stream,
        prepend_prompt=text is not None and not stream and not exclude,
        returns=returns,
        min_weight_version=read_string(request, "min_weight_version"),
        lora_name=lora_name,
        return_text=bool(read_bool(request, "return_text", default=True)),
    )
    check_text(checked)
    return checked


def check_text(request: NativeRequest) -> None:
    """Check that every output asked for exists with, or without, text. Raises BadTensor."""
    if request.return_text:
        if "prompt_token_logprobs" in request.returns:
            raise BadTensor("return_prompt_token_logprobs", "needs return_text to be false")
        return
    if request.stream or isinstance(request.prompt, str):
        raise BadTensor("return_text", "must be true (or left out) with text_input, or when streaming")
    if request.params.stop:
        raise BadTensor("sampling_parameters", "stop: strings need text: use stop_token_ids, or return_text")
    if "logprobs" in request.returns:
        raise BadTensor("return_logprobs", "has tokens as text: use return_token_logprobs, or return_text")
    if "prompt_token_logprobs" in request.returns and request.params.prompt_logprobs is None:
        raise BadTensor("return_prompt_token_logprobs", 'needs "prompt_logprobs" in sampling_parameters')


def read_sampling_parameters(request: Any) -> dict[str, Any]:
    """The tensor sampling_parameters; without it, the parameters of the Triton request. Raises BadTensor."""
    values = read_json_object(request, "sampling_parameters")
    if values is None:
        given = parse_json_object("parameters", request.parameters())
        values = {name: value for name, value in given.items() if not name.startswith(TRITON_PARAMETERS)}
    return values


def to_sampling_params(values: dict[str, Any], stream: bool) -> SamplingParams:
    """vLLM's SamplingParams of a client's values. Raises BadTensor."""
    if unknown := sorted(values.keys() - CLIENT_PARAMETERS):
        raise BadTensor("sampling_parameters", f"unknown {', '.join(map(repr, unknown))}")
    nested = values.get("structured_outputs")
    if isinstance(nested, dict) and (private := sorted(name for name in nested if name.startswith("_"))):
        raise BadTensor("sampling_parameters", f"unknown in structured_outputs: {', '.join(map(repr, private))}")
    values = {name: value for name, value in values.items() if value is not None}
    try:
        # strict=False: vllm_backend's clients send numbers as strings, too.
        params = msgspec.convert(values, SamplingParams, strict=False)
    except (msgspec.ValidationError, VLLMClientError, ValueError, TypeError) as error:
        raise BadTensor("sampling_parameters", str(error)) from None
    params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    return params
