"""The engine client and vLLM's arguments, from what the engine in Triton said of itself."""

import os
from argparse import Namespace

from openai_frontend import arguments
from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.engine_info import EngineInfo, IncompatibleServer
from openai_frontend.options import Options
from openai_frontend.vllm_seam import AsyncEngineArgs, UsageContext, VllmConfig, vllm_version


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
    """The arguments that `vllm serve` would have: those of the engine in Triton, then `argv`.

    Raises ArgumentsError.
    """
    args = arguments.parse([*info.engine_argv, *argv])
    if args.served_model_name is None:
        args.served_model_name = info.served_model_name
    # Flash late interaction keeps a query in one engine. Its documents may go to another, which would die of them.
    args.enable_flash_late_interaction = False
    # auth.py checks the keys of every route; vLLM's own check compares the beginning of the path.
    args.api_key = None
    os.environ.pop("VLLM_API_KEY", None)
    return args


def create_config(args: Namespace, info: EngineInfo) -> VllmConfig:
    """vLLM's configuration of the engine in Triton."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine_args.mm_processor_cache_gb = 0  # as in the model, see tritonlive/backend/engine.py
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    # The engine finds these out when it starts.
    config.model_config.max_model_len = info.max_model_len
    config.cache_config.num_gpu_blocks = info.num_gpu_blocks
    config.cache_config.block_size = info.block_size
    config.cache_config.kv_cache_size_tokens = info.kv_cache_size_tokens
    return config


def create_engine(args: Namespace, options: Options) -> TritonEngineClient:
    """The engine client, not connected yet."""
    return TritonEngineClient(
        create_config(args, options.engine_info),
        options.triton_urls,
        options.engine_info,
        keys=options.keys,
        log_requests=args.enable_log_requests,
        log_stats=not args.disable_log_stats,
        num_workers=options.num_workers,
        limits=options.limits,
    )
