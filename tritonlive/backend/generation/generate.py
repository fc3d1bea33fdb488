"""Native requests: tensors in, vLLM's prompt and SamplingParams, and its outputs as tensors again."""

import json
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from vllm.exceptions import VLLMClientError
from vllm.inputs import EngineInput
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from tritonlive.backend.tensors import (
    BadTensor,
    RequestError,
    Unavailable,
    parse_json_object,
    read_array,
    read_bool,
    read_json_object,
    read_string,
)
from tritonlive.wire.error_codes import ErrorCode

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
# Set by us, not by a client: the transport decides how outputs come.
RESERVED_PARAMS = frozenset({"output_kind", "skip_clone"})
PARAM_NAMES = frozenset(
    field.name
    for field in msgspec.structs.fields(SamplingParams)
    if field.name not in RESERVED_PARAMS and not field.name.startswith("_")  # vLLM's own working fields
)
# Request parameters that Triton itself adds; the others are sampling parameters, as in vllm_backend.
TRITON_PARAMETERS = ("triton_", "sequence_", "priority", "timeout", "headers", "binary_data_output")

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class NativeRequest:
    """A native request, read and checked."""

    prompt: str | list[int]
    params: SamplingParams
    stream: bool
    prepend_prompt: bool
    returns: frozenset[str]
    min_weight_version: str | None = None
    lora_name: str | None = None
    return_text: bool = True


def read_request(request: Any) -> NativeRequest:
    """Raises BadTensor naming the tensor at fault."""
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
    """Refuse what does not go with text, or without it. Raises BadTensor."""
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
    values = read_json_object(request, "sampling_parameters")
    if values is None:
        given = parse_json_object("parameters", request.parameters())
        values = {name: value for name, value in given.items() if not name.startswith(TRITON_PARAMETERS)}
    return values


def to_sampling_params(values: dict[str, Any], stream: bool) -> SamplingParams:
    if unknown := sorted(values.keys() - PARAM_NAMES):
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


async def render(llm: AsyncLLM, prompt: str | list[int]) -> EngineInput:
    """Tokenize off the event loop. Raises BadTensor for a prompt the model cannot take."""
    try:
        parsed = parse_model_prompt(llm.model_config, prompt)
        (rendered,) = await llm.renderer.render_cmpl_async([parsed], llm.renderer.default_cmpl_tok_params)
        llm.input_processor._validate_model_inputs(None, rendered)
    except (VLLMClientError, ValueError, TypeError) as error:
        raise BadTensor("text_input" if isinstance(prompt, str) else "input_ids", str(error)) from None
    return rendered


async def generate(
    llm: AsyncLLM, request: NativeRequest, request_id: str, adapter: LoRARequest | None = None
) -> AsyncGenerator[tuple[Tensors, bool], None]:
    """Yield (tensors of one response, whether it is the last). Raises RequestError."""
    prompt = await render(llm, request.prompt)
    prompt_text = request.prompt if request.prepend_prompt and isinstance(request.prompt, str) else ""
    try:
        async for output in llm.generate(prompt, request.params, request_id, lora_request=adapter):
            yield to_tensors(output, request.returns, prompt_text), output.finished
    except (VLLMClientError, ValueError) as error:
        raise BadTensor("sampling_parameters", str(error)) from None
    except EngineDeadError:
        raise Unavailable("engine: died and is being started again; try again in a minute") from None
    except EngineGenerateError as error:
        raise RequestError(f"engine: {error.__cause__ or error}", ErrorCode.INTERNAL) from None


def to_tensors(output: RequestOutput, returns: frozenset[str], prompt_text: str = "") -> Tensors:
    """One response's tensors, shapes as in config.pbtxt with the batch dimension in front."""
    sequences = output.outputs
    tensors: Tensors = {"text_output": strings([prompt_text + sequence.text for sequence in sequences])}
    if "finish_reason" in returns:
        tensors["finish_reason"] = strings([sequence.finish_reason or "" for sequence in sequences])
        tensors["stop_reason"] = strings([json.dumps(sequence.stop_reason) for sequence in sequences])
    if "cumulative_logprob" in returns:
        values = [math.nan if s.cumulative_logprob is None else s.cumulative_logprob for s in sequences]
        tensors["cumulative_logprob"] = batch(np.array(values, np.float32))
    if "logprobs" in returns:
        tensors["logprobs"] = strings([logprobs_json(sequence) for sequence in sequences])
    if "num_input_tokens" in returns:
        tensors["num_input_tokens"] = batch(np.array([len(output.prompt_token_ids or ())], np.uint32))
    if returns & {"num_output_tokens", "token_ids", "token_logprobs"}:
        tensors["num_output_tokens"] = batch(np.array([len(s.token_ids) for s in sequences], np.uint32))
    if "token_ids" in returns:
        tensors["token_ids"] = batch(np.array([t for s in sequences for t in s.token_ids], np.int32))
        tensors["num_cached_tokens"] = batch(np.array([output.num_cached_tokens or 0], np.uint32))
    if "prompt_token_ids" in returns:
        tensors["prompt_token_ids"] = batch(np.array(output.prompt_token_ids or [], np.int32))
    if "token_logprobs" in returns:
        tensors |= token_logprobs(sequences)
    if spans := [sequence.weight_versions for sequence in sequences if sequence.weight_versions]:
        tensors["weight_version"] = strings([spans[-1][-1].version])
        tensors["weight_version_spans"] = strings([spans_json(sequence) for sequence in sequences])
        if output.lora_request is not None:
            tensors["adapter_version"] = strings([output.lora_request.lora_name])
    return tensors


def token_logprobs(sequences: Sequence[CompletionOutput]) -> Tensors:
    """token_logprobs [tokens], top_token_ids and top_logprobs [tokens, N], N the widest row."""
    rows = [(token, row) for s in sequences for token, row in zip(s.token_ids, s.logprobs or (), strict=False)]
    width = max((len(row) for _, row in rows), default=0)
    sampled = np.full(len(rows), np.nan, np.float32)
    top_ids = np.full((len(rows), width), -1, np.int32)
    top = np.full((len(rows), width), -np.inf, np.float32)
    for index, (token, row) in enumerate(rows):
        sampled[index] = row[token].logprob
        ranked = sorted(row.items(), key=lambda item: item[1].rank or 0)
        top_ids[index, : len(row)] = [candidate for candidate, _ in ranked]
        top[index, : len(row)] = [logprob.logprob for _, logprob in ranked]
    return {"token_logprobs": batch(sampled), "top_token_ids": batch(top_ids), "top_logprobs": batch(top)}


def logprobs_json(sequence: CompletionOutput) -> str:
    if sequence.logprobs is None:
        return "null"
    fields = ("logprob", "rank", "decoded_token")
    rows = [{str(t): {f: getattr(lp, f) for f in fields} for t, lp in row.items()} for row in sequence.logprobs]
    return json.dumps(finite(rows))


def finite(rows: list[dict[str, dict[str, Any]]]) -> list[dict[str, dict[str, Any]]]:
    """JSON knows no NaN or infinity: such a logprob is null."""
    for row in rows:
        for entry in row.values():
            if not math.isfinite(entry["logprob"]):
                entry["logprob"] = None
    return rows


def spans_json(sequence: CompletionOutput) -> str:
    return json.dumps([{"version": s.version, "start": s.start, "end": s.end} for s in sequence.weight_versions or ()])


def batch(array: np.ndarray) -> np.ndarray:
    return array[np.newaxis]


def strings(values: list[str]) -> np.ndarray:
    """[1, len(values)] of UTF-8 bytes, as Triton wants TYPE_STRING."""
    return batch(np.array([value.encode("utf-8", "surrogatepass") for value in values], dtype=np.object_))
