"""Assembly: vLLM's FastAPI app over our engine client, our control routes, keys on every route."""

import os
from argparse import Namespace
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.exception_handling.handlers.exception import exception_handler
from vllm.envs import enable_envs_cache
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.version import __version__ as vllm_version

from openai_frontend.adapters import AdapterVersionHeader
from openai_frontend.auth import protect
from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.engine_info import EngineInfo
from openai_frontend.errors import IncompatibleServer
from openai_frontend.options import Options
from openai_frontend.routes import control, trl_legacy
from openai_frontend.streaming import weight_spans
from openai_frontend.streaming.short_prompts import render_short_prompts_at_once
from openai_frontend.streaming.shortcut import Shortcuts, is_transparent
from openai_frontend.weight_version import WeightVersionHeader, require_minimum

TASKS = ("generate",)
BUSY_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
# The model was ready a moment ago; give it time in case it has just gone down again.
CONNECT_PATIENCE_S = 60.0


def create_app() -> ASGIApp:
    """The factory that uvicorn calls in each worker; its options come through the environment.

    Raises IncompatibleServer, ValueError and what vLLM raises for arguments it does not take.
    """
    options = Options.from_environment()
    engine_info = options.engine_info
    check_version(engine_info)
    args = parse_arguments(engine_info, options.vllm_argv)
    engine = create_engine(args, engine_info, options)
    app = build_app(args, TASKS, engine.model_config)
    vllm_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await engine.start(CONNECT_PATIENCE_S)
            await init_app_state(engine, app.state, args, TASKS)
            weight_spans.attach(app.state)
            engine.engine_core.adapters.attach(app.state)
            enable_envs_cache()  # vLLM asks its settings several times per token; its engine core has them cached, too
            async with vllm_lifespan(app):
                yield
        finally:
            await engine.close()

    app.router.lifespan_context = lifespan
    # vLLM's handler for these ends the server when the engine has died; ours waits for it to come back.
    for error in (EngineDeadError, EngineGenerateError):
        app.exception_handler(error)(exception_handler)
    control_paths = control.attach(app) | trl_legacy.attach(app)
    put_first(app, BUSY_PATHS)
    require_minimum(app, engine)
    protect(app, options.keys, control_paths)
    served = AdapterVersionHeader(WeightVersionHeader(app, engine))
    return Shortcuts(served) if is_transparent(app) else served


def put_first(app: FastAPI, paths: Collection[str]) -> None:
    """Routers go through their routes one by one, vLLM's metrics once more for each request."""
    app.router.routes.sort(key=lambda route: getattr(route, "path", None) not in paths)


def parse_arguments(engine_info: EngineInfo, argv: list[str]) -> Namespace:
    """The arguments `vllm serve` would have: those of the engine in Triton, then our own."""
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([*engine_info.engine_argv, *argv])
    validate_parsed_serve_args(args)
    if args.served_model_name is None:
        args.served_model_name = engine_info.served_model_name
    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    # Keys are checked on every route by auth.py; vLLM's own check goes by the path's first characters.
    args.api_key = None
    os.environ.pop("VLLM_API_KEY", None)
    return args


def create_engine(args: Namespace, engine_info: EngineInfo, options: Options) -> TritonEngineClient:
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine_args.mm_processor_cache_gb = 0  # as in the model, see tritonlive/backend/engine.py
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    # What only the engine finds out when it starts.
    config.model_config.max_model_len = engine_info.max_model_len
    config.cache_config.num_gpu_blocks = engine_info.num_gpu_blocks
    config.cache_config.block_size = engine_info.block_size
    config.cache_config.kv_cache_size_tokens = engine_info.kv_cache_size_tokens
    engine = TritonEngineClient(
        config,
        options.triton_urls,
        engine_info,
        control_key=options.keys.control,
        log_requests=engine_args.enable_log_requests,
        log_stats=not engine_args.disable_log_stats,
        num_workers=options.num_workers,
    )
    render_short_prompts_at_once(engine.renderer, trust_request_chat_template=args.trust_request_chat_template)
    return engine


def check_version(engine_info: EngineInfo) -> None:
    """Requests and outputs travel as vLLM's structs, positional ones: both ends must be of one version."""
    if engine_info.vllm_version != vllm_version:
        raise IncompatibleServer(
            f"the model in Triton runs vLLM {engine_info.vllm_version}, this front end vLLM {vllm_version}; "
            "install the same version on both sides"
        )
