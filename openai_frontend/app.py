"""Assembly: vLLM's FastAPI app over our engine client, our control routes, keys on every route."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from openai_frontend import engine_errors
from openai_frontend.adapters import AdapterVersionHeader
from openai_frontend.auth import protect
from openai_frontend.build_info import publish_build_info
from openai_frontend.engine.factory import check_version, create_engine, parse_arguments
from openai_frontend.guards import ignored_fields, pooling, rendering, serving, wrong_types
from openai_frontend.guards.admission import AdmissionMiddleware
from openai_frontend.guards.anthropic_errors import AnthropicErrors
from openai_frontend.guards.body import guard_bodies
from openai_frontend.guards.connection import ON_SHUTDOWN
from openai_frontend.guards.disconnect import DisconnectMiddleware
from openai_frontend.guards.refusals_in_log import drop_refusals
from openai_frontend.guards.retry_after import RetryAfter
from openai_frontend.guards.shutdown import notice_of_shutdown
from openai_frontend.options import Options
from openai_frontend.routes import control, trl_legacy, version
from openai_frontend.routes.adapters import PAYLOAD_PATHS
from openai_frontend.streaming import weight_spans
from openai_frontend.streaming.fast_path import FastPathMiddleware, is_transparent
from openai_frontend.streaming.short_prompts import render_short_prompts_at_once
from openai_frontend.streaming.templated_serving import TEMPLATED
from openai_frontend.vllm_seam import POOLING_TASKS, build_app, disable_envs_cache, enable_envs_cache, init_app_state
from openai_frontend.weight_version import WeightVersionHeader, require_minimum

GENERATE = "generate"
# Transcription takes bodies that are not JSON, and realtime takes websockets: neither is served.
SERVED_TASKS = frozenset({GENERATE, *POOLING_TASKS})
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
    rendering.check_texts(engine.renderer, engine.model_config.max_model_len)
    tasks: Any = tuple(task for task in options.engine_info.supported_tasks if task in SERVED_TASKS)
    app = build_app(args, tasks, engine.model_config)
    vllm_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        try:
            await engine.start(CONNECT_PATIENCE_S)
            publish_build_info()
            await init_app_state(engine, app.state, args, tasks)
            rendering.attach(app.state, options.limits)
            pooling.attach(app.state, options.limits)
            if GENERATE in tasks:
                weight_spans.attach(app.state, TEMPLATED if options.use_fast_path else weight_spans.VERSIONED)
                serving.attach(app.state)
            engine.engine_core.adapters.attach(app.state)
            enable_envs_cache()  # vLLM reads its settings several times per token; its engine core caches them, too
            async with vllm_lifespan(app):
                yield {ON_SHUTDOWN: notice_of_shutdown(engine, options.limits.drain_s)}
        finally:
            disable_envs_cache()  # whoever runs this app in its own process may change its environment again
            await engine.close()

    app.router.lifespan_context = lifespan
    wrong_types.attach(app)
    engine_errors.attach(app)
    version.attach(app)
    drop_refusals()
    control_paths = control.attach(app) | trl_legacy.attach(app)
    app.router.redirect_slashes = False  # Starlette puts the client's Host header into the redirect
    if not options.ignore_unknown_fields:
        ignored_fields.attach(app, engine.vllm_config.structured_outputs_config)
    require_minimum(app, engine)
    guard_bodies(app, options.limits, PAYLOAD_PATHS)
    protect(app, options.keys, control_paths)
    is_plain = is_transparent(app)
    # Inside of the middleware that holds a stream's start: a stream without a token has begun, too.
    # Not with vLLM's count of open requests, which needs what Starlette does at the end of a stream.
    tells_of_loss = is_plain and not args.enable_server_load_tracking
    ended = DisconnectMiddleware(app) if tells_of_loss else app
    admitted = AdmissionMiddleware(ended, engine_errors.answer_engine_error)
    versioned = AdapterVersionHeader(WeightVersionHeader(admitted, engine))
    served = RetryAfter(AnthropicErrors(versioned))
    return FastPathMiddleware(served) if options.use_fast_path and is_plain else served
