"""The request and response bodies of `trl vllm-serve`, used by trl_legacy*.py."""

import base64
import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from openai_frontend.vllm_seam import ncclDataTypeEnum

# vLLM's own answers have this in place of -inf, which JSON cannot express.
LOWEST_LOGPROB = -9999.0
# Fields for vLLM's internal use that have public names.
INTERNAL_PARAMS = frozenset({"skip_clone", "output_text_buffer_length"})
PARAM_NAMES = (
    frozenset(field.name for field in msgspec.structs.fields(SamplingParams) if not field.name.startswith("_"))
    - INTERNAL_PARAMS
)
PARAMS = TypeAdapter(SamplingParams)

Json = dict[str, Any]


class Sampling(BaseModel):
    """Parameters of /generate/ and /chat/; `generation_kwargs` are further SamplingParams, which take precedence."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    max_tokens: int = 16
    logprobs: int | None = 0
    structured_outputs_regex: str | None = None
    generation_kwargs: Json = Field(default_factory=dict)

    def to_sampling_params(self) -> SamplingParams:
        """Raises VLLMValidationError, which names the parameter."""
        values = self.model_dump(include=set(Sampling.model_fields) - {"structured_outputs_regex", "generation_kwargs"})
        values |= self.generation_kwargs
        if self.structured_outputs_regex is not None:
            values["structured_outputs"] = {"regex": self.structured_outputs_regex}
        return sampling_params(values)


class GenerateRequest(Sampling):
    """`images`: for each prompt None or a list of base64 images."""

    prompts: Annotated[list[str], Field(min_length=1)] | Annotated[list[list[int]], Field(min_length=1)]
    images: list[list[str] | None] | None = None


class ChatRequest(Sampling):
    """`messages`: conversations. `chat_template` needs the server's --trust-request-chat-template."""

    messages: list[Annotated[list[Json], Field(min_length=1)]] = Field(min_length=1)
    chat_template: str | None = None
    chat_template_kwargs: Json | None = None
    tools: list[Json] | None = None


class SequenceLogprobsRequest(BaseModel):
    """`sequences`: prompt and completion of each; the first `prompt_lengths` tokens of each are its prompt."""

    sequences: list[list[int]] = Field(min_length=1)
    prompt_lengths: list[int]
    top_logprobs: int = Field(default=100, ge=0)
    temperature: float = 1.0
    response_format: Literal["json", "binary"] = "json"

    def to_sampling_params(self) -> SamplingParams:
        """Raises VLLMValidationError, which names the field."""
        if len(self.prompt_lengths) != len(self.sequences):
            raise VLLMValidationError(
                f"prompt_lengths: {len(self.prompt_lengths)} lengths for {len(self.sequences)} sequences",
                parameter="prompt_lengths",
            )
        for index, (sequence, length) in enumerate(zip(self.sequences, self.prompt_lengths, strict=True)):
            if not 0 <= length <= len(sequence):
                raise VLLMValidationError(
                    f"prompt_lengths[{index}]: {length} is not between 0 and the sequence's length {len(sequence)}",
                    parameter="prompt_lengths",
                )
        return sampling_params({"max_tokens": 1, "temperature": self.temperature, "prompt_logprobs": self.top_logprobs})


class CommunicatorRequest(BaseModel):
    """The address on which the server's first worker listens. `world_size` counts the workers and the trainer."""

    host: str
    port: int = Field(ge=1, le=65535)
    world_size: int
    client_device_uuid: str


class NamedParamRequest(BaseModel):
    """One tensor of the model. `dtype` has torch's spelling (torch.bfloat16)."""

    name: str
    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]

    def to_update_info(self) -> Json:
        """Convert to the update info of vLLM's NCCL engines. Raises GracefulHTTPError for a dtype that NCCL lacks."""
        name = self.dtype.removeprefix("torch.")
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype) or not ncclDataTypeEnum.supports_torch_dtype(dtype):
            raise GracefulHTTPError(
                f"dtype: {self.dtype!r} of {self.name} is not supported by NCCL", HTTPStatus.UNPROCESSABLE_ENTITY
            )
        return {"names": [self.name], "dtype_names": [name], "shapes": [self.shape]}


def sampling_params(values: Json) -> SamplingParams:
    """Build SamplingParams: final outputs only, flat logprobs, and text only if stop strings need it.

    Raises VLLMValidationError, which names the parameter.
    """
    if unknown := sorted(values.keys() - PARAM_NAMES):
        raise VLLMValidationError(f"generation_kwargs: unknown {', '.join(unknown)}", parameter="generation_kwargs")
    try:
        params = PARAMS.validate_python(values)
    except ValidationError as error:
        name, reason = next(
            (
                (str(part), entry["msg"])
                for entry in error.errors(include_url=False)
                for part in entry["loc"]
                if part in PARAM_NAMES
            ),
            ("generation_kwargs", "are not SamplingParams"),
        )
        raise VLLMValidationError(f"{name}: {reason}", parameter=name) from None
    params.output_kind = RequestOutputKind.FINAL_ONLY
    params.flat_logprobs = True
    params.detokenize = bool(params.stop)
    return params


def data_url(image: str) -> str:
    """Convert TRL's base64 PNG to a data URL, which vLLM accepts."""
    return f"data:image/png;base64,{image}"


def with_data_urls(conversation: Sequence[Json]) -> list[Json]:
    """Convert TRL's `image_pil` parts of the conversation to OpenAI's `image_url` parts."""

    def convert(part: Any) -> Any:
        if isinstance(part, dict) and part.get("type") == "image_pil":
            return {"type": "image_url", "image_url": {"url": data_url(str(part.get("image_pil")))}}
        return part

    return [
        {**message, "content": [convert(part) for part in content]}
        if isinstance(content := message.get("content"), list)
        else message
        for message in conversation
    ]


def completions(outputs: Sequence[RequestOutput]) -> Json:
    """The answer of /generate/ and /chat/: prompt ids by prompt, other fields by completion, prompt-major.

    `logprobs` and `logprob_token_ids` are [completion][token][rank], or None if they were not requested.
    """
    sequences = [sequence for output in outputs for sequence in output.outputs]
    ranked_rows = [
        None if sequence.logprobs is None else [ranked(row) for row in sequence.logprobs] for sequence in sequences
    ]
    have_logprobs = all(rows is not None for rows in ranked_rows)
    return {
        "prompt_ids": [list(output.prompt_token_ids or ()) for output in outputs],
        "completion_ids": [list(sequence.token_ids) for sequence in sequences],
        "logprobs": [[values for _, values in rows or ()] for rows in ranked_rows] if have_logprobs else None,
        "logprob_token_ids": [[ids for ids, _ in rows or ()] for rows in ranked_rows] if have_logprobs else None,
    }


def ranked(row: dict[int, Logprob] | None) -> tuple[list[int], list[float | None]]:
    """(token ids, logprobs) of one position by rank, including the sampled token."""
    items = sorted((row or {}).items(), key=lambda item: item[1].rank or 0)
    return [token for token, _ in items], [finite(entry.logprob) for _, entry in items]


def finite(logprob: float) -> float | None:
    return None if math.isnan(logprob) else max(logprob, LOWEST_LOGPROB)


def sequence_logprobs_json(outputs: Sequence[RequestOutput], prompt_lengths: Sequence[int]) -> Json:
    """[sequence][completion token][rank]: the top logprobs and the actual token. Empty for a sequence's first token."""
    rows = [
        [ranked(output.prompt_logprobs[at]) for at in range(start, len(output.prompt_logprobs))]
        if output.prompt_logprobs
        else []
        for output, start in zip(outputs, prompt_lengths, strict=True)
    ]
    return {
        "logprobs": [[values for _, values in sequence] for sequence in rows],
        "logprob_token_ids": [[ids for ids, _ in sequence] for sequence in rows],
    }


def sequence_logprobs_binary(
    outputs: Sequence[RequestOutput], prompt_lengths: Sequence[int], top_logprobs: int
) -> Json:
    """Base64 of float32 and int32 arrays [sequences, longest completion, top_logprobs].

    The last dimension of the `actual_` arrays is 1. Logprobs are padded with -inf, ids with 0. NaN becomes -inf.
    """
    lengths = [
        len(output.prompt_token_ids or ()) - start for output, start in zip(outputs, prompt_lengths, strict=True)
    ]
    # A flat row of vLLM's has the actual token, then the top tokens by rank. A sequence's first token has no row.
    width = 1 + top_logprobs
    shape = (len(outputs), max(lengths), width)
    logprobs = np.full(shape, -np.inf, np.float32)
    token_ids = np.zeros(shape, np.int32)
    for index, (output, start) in enumerate(zip(outputs, prompt_lengths, strict=True)):
        flat = cast(FlatLogprobs, output.prompt_logprobs)
        first = max(start, 1)
        rows = slice(first - start, lengths[index])
        values = np.array(flat.logprobs[(first - 1) * width :], np.float32).reshape(-1, width)
        logprobs[index, rows] = np.where(np.isnan(values), -np.inf, values)
        token_ids[index, rows] = np.array(flat.token_ids[(first - 1) * width :], np.int32).reshape(-1, width)
    return {
        "logprobs_b64": encode(logprobs[:, :, 1:]),
        "token_ids_b64": encode(token_ids[:, :, 1:]),
        "actual_logprobs_b64": encode(logprobs[:, :, :1]),
        "actual_token_ids_b64": encode(token_ids[:, :, :1]),
        "shape": [len(outputs), max(lengths), top_logprobs],
        "completion_lengths": lengths,
    }


def encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
