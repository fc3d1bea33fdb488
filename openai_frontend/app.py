"""Assembly: vLLM's FastAPI app over our engine client, our control routes, keys on every route."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

from openai_frontend import engine_errors
from openai_frontend.adapters import AdapterVersionHeader
from openai_frontend.auth import protect
from openai_frontend.engine.factory import check_version, create_engine, parse_arguments
from openai_frontend.options import Options
from openai_frontend.routes import control, trl_legacy
from openai_frontend.streaming import weight_spans
from openai_frontend.streaming.fast_path import FastPathMiddleware, is_transparent
from openai_frontend.streaming.short_prompts import render_short_prompts_at_once
from openai_frontend.streaming.templated_serving import TEMPLATED
from openai_frontend.vllm_seam import build_app, enable_envs_cache, init_app_state
from openai_frontend.weight_version import WeightVersionHeader, require_minimum

TASKS = ("generate",)
# The model was ready a moment ago. This allows for a restart in between.
CONNECT_PATIENCE_S = 60.0


def create_app() -> ASGIApp:
    """The factory that uvicorn calls in each worker; its options come through the environment.

    Raises IncompatibleServer, ValueError and what vLLM raises for arguments it does not take.
    """
    options = Options.from_environment()
    check_version(options.engine_info)
    args = parse_arguments(options.engine_info, options.vllm_argv)
    engine = create_engine(args, options)
    if options.use_fast_path:
        render_short_prompts_at_once(engine.renderer, trust_request_chat_template=args.trust_request_chat_template)
    app = build_app(args, TASKS, engine.model_config)
    vllm_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await engine.start(CONNECT_PATIENCE_S)
            await init_app_state(engine, app.state, args, TASKS)
            weight_spans.attach(app.state, TEMPLATED if options.use_fast_path else weight_spans.VERSIONED)
            engine.engine_core.adapters.attach(app.state)
            enable_envs_cache()  # vLLM reads its settings several times per token; its engine core caches them, too
            async with vllm_lifespan(app):
                yield
        finally:
            await engine.close()

    app.router.lifespan_context = lifespan
    engine_errors.attach(app)
    control_paths = control.attach(app) | trl_legacy.attach(app)
    require_minimum(app, engine)
    protect(app, options.keys, control_paths)
    served = AdapterVersionHeader(WeightVersionHeader(app, engine))
    return FastPathMiddleware(served) if options.use_fast_path and is_transparent(app) else served
