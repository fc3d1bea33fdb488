"""A native request: read from its tensors, and checked."""

from dataclasses import dataclass
from typing import Any

import msgspec
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind, SamplingParams

from tritonlive.backend.tensors import (
    BadTensor,
    RequestError,
    parse_json_object,
    parse_parameters,
    read_array,
    read_bool,
    read_parameters,
    read_string,
)
from tritonlive.backend.vllm_seam.requests import SAMPLING_PARAMETERS
from tritonlive.wire import tensor_names
from tritonlive.wire.plain_values import find_problem, find_sampling_problem

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
# Request parameters that Triton itself adds. All others but the key are sampling parameters, as in vllm_backend.
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
    wants_logprobs: bool = False
    """Whether the client asks for logprobs. cumulative_logprob needs the sampled tokens' own, and they are not sent."""


def read_request(request: Any) -> NativeRequest:
    """Read a Triton request. Raises RequestError with the name of the tensor at fault."""
    text, ids = read_string(request, tensor_names.TEXT_INPUT), read_array(request, tensor_names.INPUT_IDS)
    if text is not None and ids is not None:
        raise BadTensor(tensor_names.TEXT_INPUT, "give either text_input or input_ids, not both")
    prompt = text if ids is None else ids.tolist()
    if prompt is None:
        raise BadTensor(tensor_names.TEXT_INPUT, "give either text_input or input_ids")
    stream = bool(read_bool(request, tensor_names.STREAM))
    exclude = read_bool(request, tensor_names.EXCLUDE_INPUT_IN_OUTPUT, default=None)
    if stream and exclude is False:
        # vllm_backend's words, which its clients compare.
        raise RequestError("When streaming, `exclude_input_in_output` = False is not allowed.")
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
    params = to_sampling_params(values, stream)
    wants_logprobs = params.num_logprobs is not None
    if tensor_names.CUMULATIVE_LOGPROB in returns and not wants_logprobs:
        params.logprobs = 0
    checked = NativeRequest(
        prompt=prompt,
        params=params,
        stream=stream,
        prepend_prompt=text is not None and not stream and not exclude,
        returns=returns,
        min_weight_version=read_string(request, tensor_names.MIN_WEIGHT_VERSION),
        lora_name=lora_name,
        return_text=bool(read_bool(request, tensor_names.RETURN_TEXT, default=True)),
        wants_logprobs=wants_logprobs,
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
    if (text := read_string(request, tensor_names.SAMPLING_PARAMETERS)) is not None:
        return parse_parameters(tensor_names.SAMPLING_PARAMETERS, text)
    return {
        name: value
        for name, value in read_parameters(request).items()
        if name != tensor_names.API_KEY and not name.startswith(TRITON_PARAMETERS)
    }


def to_sampling_params(values: dict[str, Any], stream: bool) -> SamplingParams:
    """vLLM's SamplingParams of a client's values. Raises BadTensor."""
    if unknown := sorted(values.keys() - CLIENT_PARAMETERS):
        raise BadTensor(tensor_names.SAMPLING_PARAMETERS, f"unknown {', '.join(map(repr, unknown))}")
    if (problem := find_problem(values, "")) is not None:
        raise BadTensor(tensor_names.SAMPLING_PARAMETERS, str(problem))
    nested = values.get("structured_outputs")
    if isinstance(nested, str):  # vllm_backend's clients send it as JSON in JSON
        nested = values["structured_outputs"] = parse_json_object("sampling_parameters: structured_outputs", nested)
    if isinstance(nested, dict) and (private := sorted(name for name in nested if name.startswith("_"))):
        raise BadTensor(
            tensor_names.SAMPLING_PARAMETERS, f"unknown in structured_outputs: {', '.join(map(repr, private))}"
        )
    values = {name: value for name, value in values.items() if value is not None}
    if (problem := find_sampling_problem(values)) is not None:
        raise BadTensor(tensor_names.SAMPLING_PARAMETERS, str(problem))
    try:
        # strict=False: vllm_backend's clients send numbers as strings, too.
        params = msgspec.convert(values, SamplingParams, strict=False)
    except (msgspec.ValidationError, VLLMClientError, ValueError, TypeError) as error:
        raise BadTensor(tensor_names.SAMPLING_PARAMETERS, str(error)) from None
    # Again: strings have become numbers.
    if (problem := find_sampling_problem(msgspec.structs.asdict(params))) is not None:
        raise BadTensor(tensor_names.SAMPLING_PARAMETERS, str(problem))
    params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    return params
