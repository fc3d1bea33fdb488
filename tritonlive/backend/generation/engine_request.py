"""Checks EngineCoreRequests that come ready-made from a front end."""

from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import BadTensor
from tritonlive.backend.vllm_seam import requests
from tritonlive.backend.vllm_seam.messages import EngineCoreRequest
from tritonlive.wire.tensor_names import ENGINE_REQUEST


def check_engine_request(engine: Engine, request: EngineCoreRequest) -> SamplingParams | PoolingParams:
    """Refuse a request that would harm the engine: anybody who reaches Triton's port could send one.

    The checks are those that vLLM's input processor makes of requests that it renders. Returns the request's params.
    Raises BadTensor, or Unavailable without an engine.
    """
    llm = engine.llm
    if (request.sampling_params is None) == (request.pooling_params is None):
        raise BadTensor(ENGINE_REQUEST, "needs either sampling_params or pooling_params")
    params = request.params
    if isinstance(params, SamplingParams) and params.max_tokens is None:
        raise BadTensor(ENGINE_REQUEST, "lacks max_tokens in its sampling_params")
    if isinstance(params, PoolingParams) and (params.late_interaction_params is not None or params.extra_kwargs):
        # The worker does not check them, and an error there ends the engine.
        raise BadTensor(ENGINE_REQUEST, "late_interaction_params and extra_kwargs of pooling_params are not served")
    if request.resumable or request.abort_immediately:
        raise BadTensor(ENGINE_REQUEST, "resumable and abort_immediately are not served")
    if request.prompt_embeds is not None and not llm.model_config.enable_prompt_embeds:
        raise BadTensor(ENGINE_REQUEST, "prompt_embeds are off; start vLLM with --enable-prompt-embeds")
    if request.prompt_token_ids is None and request.prompt_embeds is None:
        raise BadTensor(ENGINE_REQUEST, "lacks prompt_token_ids")
    try:
        requests.validate(llm, request, params, engine.supported_tasks)
    except (VLLMValidationError, ValueError, TypeError) as error:
        raise BadTensor(ENGINE_REQUEST, str(error)) from None
    return params
