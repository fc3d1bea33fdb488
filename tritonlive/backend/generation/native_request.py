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
from tritonlive.wire import tensor_names

# Outputs that a request asks for with return_<name>.
RETURNS = (
    tensor_names.FINISH_REASON,
    tensor_names.CUMULATIVE_LOGPROB,
    tensor_names.LOGPROBS,
    tensor_names.NUM_INPUT_TOKENS,
    tensor_names.NUM_OUTPUT_TOKENS,
    tensor_names.TOKEN_IDS,
    tensor_names.PROMPT_TOKEN_IDS,
    tensor_names.TOKEN_LOGPROBS,
    tensor_names.PROMPT_TOKEN_LOGPROBS,
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
    text, ids = read_string(request, tensor_names.TEXT_INPUT), read_array(request, tensor_names.INPUT_IDS)
    if text is not None and ids is not None:
        raise BadTensor(tensor_names.TEXT_INPUT, "give either text_input or input_ids, not both")
    prompt = text if ids is None else ids.tolist()
    if prompt is None:
        raise BadTensor(tensor_names.TEXT_INPUT, "give either text_input or input_ids")
    stream = bool(read_bool(request, tensor_names.STREAM))
    exclude = read_bool(request, tensor_names.EXCLUDE_INPUT_IN_OUTPUT, default=None)
    if stream and exclude is False:
        raise BadTensor(tensor_names.EXCLUDE_INPUT_IN_OUTPUT, "must be true (or left out) when streaming")
    if text is None and exclude is False:
        raise BadTensor(
            tensor_names.EXCLUDE_INPUT_IN_OUTPUT,
            "must be true (or left out) with input_ids: there is no text to prepend",
        )
    returns = frozenset(name for name in RETURNS if read_bool(request, f"return_{name}"))
    values = read_sampling_parameters(request)
    lora_name = values.pop("lora_name", None)
    if lora_name is not None and not isinstance(lora_name, str):
        raise BadTensor(tensor_names.SAMPLING_PARAMETERS, "lora_name must be the name of a pushed adapter")
    checked = NativeRequest(
        prompt=prompt,
        params=to_sampling_params(values, stream),
        stream=stream,
        prepend_prompt=text is not None and not stream and not exclude,
        returns=returns,
        min_weight_version=read_string(request, tensor_names.MIN_WEIGHT_VERSION),
        lora_name=lora_name,
        return_text=bool(read_bool(request, tensor_names.RETURN_TEXT, default=True)),
    )
    check_text(checked)
    return checked


def check_text(request: NativeRequest) -> None:
    """Check that every output asked for exists with, or without, text. Raises BadTensor."""
    if request.return_text:
        if tensor_names.PROMPT_TOKEN_LOGPROBS in request.returns:
            raise BadTensor(tensor_names.RETURN_PROMPT_TOKEN_LOGPROBS, "needs return_text to be false")
        return
    if request.stream or isinstance(request.prompt, str):
        raise BadTensor(tensor_names.RETURN_TEXT, "must be true (or left out) with text_input, or when streaming")
    if request.params.stop:
        raise BadTensor(tensor_names.SAMPLING_PARAMETERS, "stop: strings need text: use stop_token_ids, or return_text")
    if tensor_names.LOGPROBS in request.returns:
        raise BadTensor(tensor_names.RETURN_LOGPROBS, "has tokens as text: use return_token_logprobs, or return_text")
    if tensor_names.PROMPT_TOKEN_LOGPROBS in request.returns and request.params.prompt_logprobs is None:
        raise BadTensor(tensor_names.RETURN_PROMPT_TOKEN_LOGPROBS, 'needs "prompt_logprobs" in sampling_parameters')


def read_sampling_parameters(request: Any) -> dict[str, Any]:
    """The tensor sampling_parameters; without it, the parameters of the Triton request. Raises BadTensor."""
    values = read_json_object(request, tensor_names.SAMPLING_PARAMETERS)
    if values is None:
        given = parse_json_object("parameters", request.parameters())
        values = {name: value for name, value in given.items() if not name.startswith(TRITON_PARAMETERS)}
    return values


def to_sampling_params(values: dict[str, Any], stream: bool) -> SamplingParams:
    """vLLM's SamplingParams of a client's values. Raises BadTensor."""
    if unknown := sorted(values.keys() - CLIENT_PARAMETERS):
        raise BadTensor(tensor_names.SAMPLING_PARAMETERS, f"unknown {', '.join(map(repr, unknown))}")
    nested = values.get("structured_outputs")
    if isinstance(nested, dict) and (private := sorted(name for name in nested if name.startswith("_"))):
        raise BadTensor(
            tensor_names.SAMPLING_PARAMETERS, f"unknown in structured_outputs: {', '.join(map(repr, private))}"
        )
    values = {name: value for name, value in values.items() if value is not None}
    try:
        # strict=False: vllm_backend's clients send numbers as strings, too.
        params = msgspec.convert(values, SamplingParams, strict=False)
    except (msgspec.ValidationError, VLLMClientError, ValueError, TypeError) as error:
        raise BadTensor(tensor_names.SAMPLING_PARAMETERS, str(error)) from None
    params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    return params
