"""The one place where the front end depends on what vLLM does not document.

Three kinds of dependency are gathered here: names in modules that move between releases, methods and attributes that
vLLM keeps to itself, and objects of vLLM's that get another class. Other modules import the names from here and call
the functions below. `tests/frontend/test_vllm_seam.py` compares every signature with the one this code was written for
and names what moved; docs/upgrading-vllm.md says how to go on from there.

What stays outside: documented names (`vllm.SamplingParams`, `vllm.outputs`, `vllm.exceptions`, `vllm.lora.request`).
"""

import copy
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

from fastapi import FastAPI
from vllm.config import VllmConfig
from vllm.distributed.device_communicators.pynccl_wrapper import ncclDataTypeEnum
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.generate.base.protocol import DeltaMessage, FunctionCall, StreamOptions
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionLogProbs, CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent, ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.pooling.base.serving import PoolingBaseServing
from vllm.entrypoints.rl.online.api_router import router as rl_router
from vllm.entrypoints.rl.online.metrics import weight_operation_metrics
from vllm.entrypoints.serve.dev.cache.api_router import router as cache_router
from vllm.entrypoints.serve.dev.server_info.api_router import router as server_info_router
from vllm.entrypoints.serve.elastic_ep.middleware import ScalingMiddleware
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse, ModelList
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.exception_handling.handlers.exception import exception_handler
from vllm.entrypoints.serve.instrumentator.health import health
from vllm.entrypoints.serve.middleware.x_request_id import XRequestIdMiddleware
from vllm.entrypoints.serve.utils.api_utils import (
    load_aware_call,
    should_include_usage,
    validate_json_request,
    with_cancellation,
)
from vllm.envs import disable_envs_cache, enable_envs_cache
from vllm.inputs import EngineInput
from vllm.multimodal.media import MediaConnector
from vllm.parser.abstract_parser import DelegatingParser
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.base import BaseRenderer
from vllm.renderers.hf import HfRenderer, _get_hf_base_chat_template_params, safe_apply_chat_template
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import check_json_nesting
from vllm.tasks import POOLING_TASKS, SupportedTask
from vllm.tokenizers import TokenizerLike
from vllm.tokenizers.hf import ThreadSafeHFTokenizerMixin
from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser
from vllm.tool_parsers.streaming import extract_required_tool_call_streaming
from vllm.tool_parsers.utils import partial_tag_overlap
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.async_utils import merge_async_iterators
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest, PauseMode
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import IterationStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.version import __version__ as vllm_version

from tritonlive.wire.kept_tokens import KeptTokens

__all__ = [
    "AnthropicServingMessages",
    "AsyncEngineArgs",
    "AsyncLLM",
    "AsyncRender",
    "BaseRenderer",
    "BatchChatCompletionRequest",
    "ChatCompletionNamedToolChoiceParam",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "CompletionLogProbs",
    "CompletionRequest",
    "CompletionResponse",
    "DelegatingParser",
    "DeltaMessage",
    "EngineCoreClient",
    "EngineCoreOutputs",
    "EngineCoreRequest",
    "EngineDeadError",
    "EngineGenerateError",
    "EngineInput",
    "ErrorInfo",
    "ErrorResponse",
    "Executor",
    "FlexibleArgumentParser",
    "FunctionCall",
    "Hermes2ProToolParser",
    "HfRenderer",
    "IterationStats",
    "MediaConnector",
    "ModelList",
    "MsgpackDecoder",
    "MsgpackEncoder",
    "OnlineRenderer",
    "OpenAIServingChat",
    "OpenAIServingChatBatch",
    "OpenAIServingCompletion",
    "OpenAIServingModels",
    "OpenAIServingResponses",
    "OutputProcessor",
    "POOLING_TASKS",
    "PauseMode",
    "PoolingBaseServing",
    "ReasoningParserManager",
    "RelayedOutputs",
    "RequestOutputCollector",
    "ResponseCompletedEvent",
    "ResponsesRequest",
    "ResponsesResponse",
    "ScalingMiddleware",
    "StatLoggerManager",
    "StreamOptions",
    "SupportedTask",
    "ThreadSafeHFTokenizerMixin",
    "TokenizerLike",
    "ToolParserManager",
    "UsageContext",
    "VllmConfig",
    "WeightTransferInitRequest",
    "WeightTransferUpdateRequest",
    "XRequestIdMiddleware",
    "build_app",
    "cache_router",
    "change_class",
    "check_json_nesting",
    "watch_texts",
    "copy_as",
    "core_client",
    "create_error_response",
    "disable_envs_cache",
    "enable_envs_cache",
    "encoder",
    "exception_handler",
    "fail_queue",
    "extract_required_tool_call_streaming",
    "fail_request",
    "forget_ended_output_handler",
    "health",
    "init_app_state",
    "leave_grammars_to_model",
    "load_aware_call",
    "make_arg_parser",
    "merge_async_iterators",
    "ncclDataTypeEnum",
    "parse_model_prompt",
    "partial_tag_overlap",
    "rebuild_middleware",
    "replace_rendering",
    "rl_router",
    "safe_apply_chat_template",
    "server_info_router",
    "set_tokenizer",
    "should_include_usage",
    "template_parameters",
    "validate_json_request",
    "validate_parsed_serve_args",
    "vllm_version",
    "watch_pooling",
    "weight_operation_metrics",
    "with_cancellation",
]

T = TypeVar("T")

# vLLM's encoder moves arrays above a threshold into frames of their own; a Triton tensor is one frame.
ONE_FRAME = 1 << 62


class RelayedOutputs(EngineCoreOutputs, array_like=True, omit_defaults=True, gc=False):
    """A step on a front end's channel: vLLM's struct with one more field at its end."""

    kept: KeptTokens | None = None


def change_class(found: Any, theirs: type, ours: type[T], name: str) -> T:
    """Give `found`, an object that vLLM made, the class `ours`, a subclass of `theirs` with other methods.

    vLLM makes these objects from dozens of settings, so that making them again would copy its constructors.
    Raises TypeError, which says `name`, if the object's class is not exactly `theirs`.
    """
    if type(found) is not theirs:
        raise TypeError(f"{name} is a {type(found).__name__}, not vLLM's {theirs.__name__}")
    found.__class__ = ours
    return found


def copy_as(found: Any, ours: type[T]) -> T:
    """A shallow copy of `found` with the class `ours`, a subclass of its own.

    vLLM's pool of tokenizers makes copies of another class than its own, so that `change_class` would refuse them.
    """
    copied: Any = copy.copy(found)
    copied.__class__ = ours
    return copied


@contextmanager
def core_client(client: EngineCoreClient) -> Iterator[None]:
    """Within, AsyncLLM.__init__ takes `client` as its engine core client: it does not let its caller choose one."""
    with patch.object(EngineCoreClient, "make_async_mp_client", lambda **_: client):
        yield


def leave_grammars_to_model(llm: AsyncLLM) -> None:
    """Have `llm` no longer validate grammars, on its event loop and without limit: the model in Triton does it."""
    processor: Any = llm.input_processor
    processor.structured_outputs_config = None  # SamplingParams.verify skips them then


def set_tokenizer(processor: OutputProcessor, tokenizer: TokenizerLike | None) -> None:
    """Have `processor` detokenize with `tokenizer` from the next request on."""
    processor.tokenizer = tokenizer


def fail_request(processor: OutputProcessor, request_id: str, error: Exception) -> list[str]:
    """End the request of a generation: its client gets `error`.

    Returns the other generations of the same request (with n > 1), which are to be aborted in their engines. A
    generation that has already ended, and one without a waiting client, make no difference.
    """
    state = processor.request_states.get(request_id)
    if state is None or state.queue is None:
        return []
    parent = state.parent_req
    state.queue.put(error)  # first: the abort puts an output, which does not replace an error
    aborted = processor.abort_requests([parent.request_id if parent else request_id], internal=True)
    return [other for other in aborted if other != request_id]


def fail_queue(processor: OutputProcessor, queue: RequestOutputCollector, error: Exception) -> list[str]:
    """End all generations whose results go to `queue`: its client gets `error` next.

    Returns the generations, which are to be aborted in their engines.
    """
    aborted = processor.abort_requests([queue.request_id], internal=True)
    queue.put(error)
    return aborted


def forget_ended_output_handler(llm: AsyncLLM) -> None:
    """Let `llm` start another task for the engine's outputs if the task it has failed; vLLM itself would not."""
    if llm.output_handler is not None and llm.output_handler.done():
        llm.output_handler = None


AsyncRender = Callable[..., Awaitable[Any]]


def replace_rendering(
    renderer: HfRenderer,
    tokenize: Callable[[Callable[..., Any], AsyncRender], AsyncRender],
    apply_template: Callable[[AsyncRender], AsyncRender] | None,
) -> None:
    """Replace the methods with which `renderer` tokenizes a prompt and, if given, applies a chat template.

    tokenize: gets vLLM's method for the loop and its method for a thread; returns the new one.
    apply_template: gets vLLM's method for a thread; returns the new one.
    """
    renderer._tokenize_prompt_async = tokenize(renderer._tokenize_prompt, renderer._tokenize_prompt_async)
    if apply_template is not None:
        renderer._apply_chat_template_async = apply_template(renderer._apply_chat_template_async)


def watch_texts(renderer: BaseRenderer, check: Callable[[str], None]) -> None:
    """Have `renderer` call `check` with each text before it tokenizes it; what `check` raises refuses the request.

    Call it after `replace_rendering`.
    """

    def checked(tokenize: Callable[..., Any]) -> Callable[..., Any]:
        def check_first(prompt: Any, params: Any) -> Any:
            check(prompt["prompt"])
            return tokenize(prompt, params)

        return check_first

    renderer._tokenize_prompt_async = checked(renderer._tokenize_prompt_async)
    renderer._tokenize_prompt = checked(renderer._tokenize_prompt)  # the routes that pool


def watch_pooling(serving: PoolingBaseServing, check: Callable[[Any, bool], None]) -> None:
    """Have `serving` call `check` with each request and whether its client may send a template, before it renders."""
    preprocess = serving._preprocessing

    async def checked(io_processor: Any, ctx: Any) -> None:
        check(ctx.request, serving.chat_template_config.trust_request_chat_template)
        await preprocess(io_processor, ctx)

    serving._preprocessing = checked


def template_parameters() -> frozenset[str]:
    """Names that vLLM takes out of `chat_template_kwargs` and passes to the tokenizer instead of the template."""
    return _get_hf_base_chat_template_params() | {"model_config", "tokenizer"}


def encoder() -> MsgpackEncoder:
    """vLLM's encoder for EngineCoreRequests, such that everything is in the first frame of `encode`'s result."""
    return MsgpackEncoder(size_threshold=ONE_FRAME)


def rebuild_middleware(app: FastAPI) -> None:
    """Make what was registered with `app` after vLLM's `build_app` take effect.

    `build_app` ends with SageMaker's bootstrap, which builds the middleware stack, and the stack has a copy of the
    exception handlers that were registered by then.
    """
    app.middleware_stack = app.build_middleware_stack()
