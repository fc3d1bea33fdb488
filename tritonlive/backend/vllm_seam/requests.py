"""Rendering, validation and splitting of requests, as AsyncLLM does them.

Every function raises what vLLM raises for a request that it refuses.
"""

from copy import copy
from typing import Any

import msgspec
from vllm.inputs import EngineInput
from vllm.lora.request import LoRARequest
from vllm.pooling_params import PoolingParams
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.parallel_sampling import ParentRequest

from .messages import AsyncLLM, EngineCoreRequest

# Fields of SamplingParams that begin with an underscore are vLLM's working state.
SAMPLING_PARAMETERS = frozenset(
    field.name for field in msgspec.structs.fields(SamplingParams) if not field.name.startswith("_")
)


async def render(llm: AsyncLLM, prompt: str | list[int]) -> EngineInput:
    """Tokenize a prompt off the event loop and check it against the model.

    Raises VLLMClientError, ValueError or TypeError for a prompt that the model cannot take.
    """
    parsed = parse_model_prompt(llm.model_config, prompt)
    (rendered,) = await llm.renderer.render_cmpl_async([parsed], llm.renderer.default_cmpl_tok_params)
    llm.input_processor._validate_model_inputs(None, rendered)
    return rendered


def validate(
    llm: AsyncLLM,
    request: EngineCoreRequest,
    params: SamplingParams | PoolingParams,
    supported_tasks: tuple[Any, ...],
) -> None:
    """Run the checks that vLLM's input processor makes of a request that it renders itself.

    params: the request's own. Raises VLLMValidationError, ValueError or TypeError.
    """
    processor = llm.input_processor
    processor._validate_params(params, supported_tasks)
    processor._validate_lora(request.lora_request)
    if request.prompt_token_ids is not None:
        processor._validate_prompt_len(len(request.prompt_token_ids), "decoder")
        llm.renderer.validate_token_ids(request.prompt_token_ids)


def make_request(
    llm: AsyncLLM,
    request_id: str,
    prompt: EngineInput,
    params: SamplingParams,
    supported_tasks: tuple[Any, ...],
    adapter: LoRARequest | None,
) -> EngineCoreRequest:
    """Make an engine request of a rendered prompt. Raises VLLMClientError or ValueError."""
    return llm.input_processor.process_inputs(request_id, prompt, params, supported_tasks, lora_request=adapter)


def split(llm: AsyncLLM, request: EngineCoreRequest, n: int) -> list[EngineCoreRequest]:
    """One engine request for each of the n sequences of `request`, with ids that are unique in the engine."""
    llm.input_processor.assign_request_id(request)
    if n == 1:
        return [request]
    parent = ParentRequest(request)
    parts = [copy(request) for _ in range(n)]
    for index, part in enumerate(parts):
        part.request_id, part.sampling_params = parent.get_child_info(index)
    return parts
