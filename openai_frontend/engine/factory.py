"""The engine client and vLLM's arguments, from what the engine in Triton said of itself."""

import os
from argparse import Namespace

from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.engine_info import EngineInfo
from openai_frontend.errors import IncompatibleServer
from openai_frontend.options import Options
from openai_frontend.vllm_seam import (
    AsyncEngineArgs,
    FlexibleArgumentParser,
    ReasoningParserManager,
    ToolParserManager,
    UsageContext,
    make_arg_parser,
    validate_parsed_serve_args,
    vllm_version,
)


def check_version(info: EngineInfo) -> None:
    """Raises IncompatibleServer unless both ends run the same vLLM.

    Requests and outputs travel as vLLM's structs, whose fields have positions instead of names.
    """
    if info.vllm_version != vllm_version:
        raise IncompatibleServer(
            f"the model in Triton runs vLLM {info.vllm_version}, this front end vLLM {vllm_version}; "
            "install the same version on both sides"
        )


def parse_arguments(info: EngineInfo, argv: list[str]) -> Namespace:
    """The arguments that `vllm serve` would have: those of the engine in Triton, then `argv`."""
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([*info.engine_argv, *argv])
    validate_parsed_serve_args(args)
    if args.served_model_name is None:
        args.served_model_name = info.served_model_name
    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    # auth.py checks the keys of every route; vLLM's own check compares the beginning of the path.
    args.api_key = None
    os.environ.pop("VLLM_API_KEY", None)
    return args


def create_engine(args: Namespace, options: Options) -> TritonEngineClient:
    """The engine client, not connected yet."""
    info = options.engine_info
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine_args.mm_processor_cache_gb = 0  # as in the model, see tritonlive/backend/engine.py
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    # The engine finds these out when it starts.
    config.model_config.max_model_len = info.max_model_len
    config.cache_config.num_gpu_blocks = info.num_gpu_blocks
    config.cache_config.block_size = info.block_size
    config.cache_config.kv_cache_size_tokens = info.kv_cache_size_tokens
    return TritonEngineClient(
        config,
        options.triton_urls,
        info,
        control_key=options.keys.control,
        log_requests=engine_args.enable_log_requests,
        log_stats=not engine_args.disable_log_stats,
        num_workers=options.num_workers,
    )
