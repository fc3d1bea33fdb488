"""The routes of `trl vllm-serve` for TRL's client up to 1.10. Their paths end with a slash.

TRL 1.11 and later use `vllm serve`'s own routes. Once older TRL need not be supported, delete this module,
trl_legacy_weights.py, trl_protocol.py, their line in app.py, "/health/" in auth.py, and
sync/worker/trl_legacy_worker.py with its line in sync/worker/plugin.py.

Generation, chat and teacher logprobs are here; routes that need the control key are in trl_legacy_weights.py.

Images are passed to vLLM in vLLM's format. No vision model has been tested.
"""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import ValidationError
from vllm.exceptions import GenerationError, VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from openai_frontend.engine.triton_engine import TritonEngineClient
from openai_frontend.errors import EngineUnavailable
from openai_frontend.routes import trl_legacy_weights
from openai_frontend.routes import trl_protocol as protocol
from openai_frontend.routes.engine import engine
from openai_frontend.vllm_seam import (
    ChatCompletionRequest,
    EngineInput,
    ErrorResponse,
    MediaConnector,
    health,
    load_aware_call,
    merge_async_iterators,
    parse_model_prompt,
    validate_json_request,
    with_cancellation,
)

router = APIRouter()
JSON_ONLY = [Depends(validate_json_request)]

router.add_api_route("/health/", health, response_class=Response)


@router.post("/generate/", dependencies=JSON_ONLY)
@with_cancellation
@load_aware_call
async def generate(body: protocol.GenerateRequest, raw_request: Request) -> Response:
    """Complete prompts (texts or token ids), `n` times each."""
    params = body.to_sampling_params()
    engine(raw_request).check_fan_out(len(body.prompts), params.n, prompts_field="prompts")
    prompts = await render_prompts(engine(raw_request), body)
    outputs = await run(engine(raw_request), prompts, params)
    return await answer(lambda: protocol.completions(outputs))


@router.post("/chat/", dependencies=JSON_ONLY)
@with_cancellation
@load_aware_call
async def chat(body: protocol.ChatRequest, raw_request: Request) -> Response:
    """Answer conversations, `n` times each."""
    params = body.to_sampling_params()
    engine(raw_request).check_fan_out(len(body.messages), params.n, prompts_field="messages")
    prompts = [await render_chat(raw_request, body, index) for index in range(len(body.messages))]
    outputs = await run(engine(raw_request), prompts, params)
    return await answer(lambda: protocol.completions(outputs))


@router.post("/get_sequence_logprobs/", dependencies=JSON_ONLY)
@with_cancellation
@load_aware_call
async def get_sequence_logprobs(body: protocol.SequenceLogprobsRequest, raw_request: Request) -> Response:
    """Return a teacher's logprobs for the completions in `sequences`."""
    params = body.to_sampling_params()
    engine(raw_request).check_fan_out(len(body.sequences), params.n, prompts_field="sequences")
    prompts = await render_texts_or_ids(engine(raw_request), body.sequences, "sequences")
    outputs = await run(engine(raw_request), prompts, params)
    if body.response_format == "binary":
        return await answer(lambda: protocol.sequence_logprobs_binary(outputs, body.prompt_lengths, body.top_logprobs))
    return await answer(lambda: protocol.sequence_logprobs_json(outputs, body.prompt_lengths))


async def render_prompts(llm: TritonEngineClient, body: protocol.GenerateRequest) -> Sequence[EngineInput]:
    """Raises VLLMValidationError, and the errors of vLLM's renderer for a prompt that the model cannot process."""
    if body.images is None:
        return await render_texts_or_ids(llm, body.prompts, "prompts")
    if not llm.model_config.is_multimodal_model:
        raise VLLMValidationError("images: this model takes none", parameter="images")
    if len(body.images) != len(body.prompts):
        raise VLLMValidationError(
            f"images: {len(body.images)} lists for {len(body.prompts)} prompts", parameter="images"
        )
    config = llm.model_config.multimodal_config
    connector = MediaConnector(config.media_io_kwargs if config is not None else None)
    prompts: list[Any] = []
    for prompt, images in zip(body.prompts, body.images, strict=True):
        parsed: Any = parse_model_prompt(llm.model_config, prompt)
        if images:
            loaded = [await connector.fetch_image_async(protocol.data_url(image)) for image in images]
            parsed = {**parsed, "multi_modal_data": {"image": loaded}}
        prompts.append(parsed)
    return await llm.renderer.render_cmpl_async(prompts)


async def render_texts_or_ids(
    llm: TritonEngineClient, prompts: Sequence[str | list[int]], field: str
) -> Sequence[EngineInput]:
    """Render prompts; vLLM tokenizes texts. Raises VLLMValidationError naming `field` for an empty prompt."""
    if any(len(prompt) == 0 for prompt in prompts):
        raise VLLMValidationError(f"{field}: contains an empty prompt", parameter=field)
    return await llm.renderer.render_cmpl_async([parse_model_prompt(llm.model_config, p) for p in prompts])


async def render_chat(request: Request, body: protocol.ChatRequest, index: int) -> EngineInput:
    """Render one conversation with vLLM's renderer. Raises VLLMValidationError."""
    values: dict[str, Any] = {"messages": protocol.with_data_urls(body.messages[index])}
    if body.tools:
        # The model sees the tools. TRL itself parses calls from the text.
        values |= {"tools": body.tools, "tool_choice": "none"}
    if body.chat_template_kwargs:
        values["chat_template_kwargs"] = body.chat_template_kwargs
    if body.chat_template is not None:
        values["chat_template"] = body.chat_template
    try:
        chat_request = ChatCompletionRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(next(iter(first["loc"]), "messages"))
        raise VLLMValidationError(f"{field} (conversation {index}): {first['msg']}", parameter=field) from None
    rendered = await request.app.state.online_renderer.render_chat(chat_request)
    if isinstance(rendered, ErrorResponse):
        raise VLLMValidationError(rendered.error.message, parameter=rendered.error.param or "messages")
    _, (prompt,) = rendered
    return prompt


async def run(
    llm: TritonEngineClient, prompts: Sequence[EngineInput], params: SamplingParams
) -> Sequence[RequestOutput]:
    """Generate for all prompts at once; returns the outputs in the order of the prompts.

    If one generation fails, or the client disconnects and this task is cancelled, the others are aborted.
    Raises GenerationError, EngineUnavailable if one was aborted, and the errors of vLLM's engine client.
    """
    if llm.errored:
        raise llm.dead_error
    llm.check_admission(params.n * len(prompts))
    name = f"trl-{uuid.uuid4().hex}"
    generators = [llm.generate(prompt, params, f"{name}-{index}") for index, prompt in enumerate(prompts)]
    outputs = {index: output async for index, output in merge_async_iterators(*generators)}
    reasons = {sequence.finish_reason for output in outputs.values() for sequence in output.outputs}
    if "error" in reasons:
        raise GenerationError()
    if "abort" in reasons:  # these routes' answers have no field that could say so
        raise EngineUnavailable("the generation was aborted by the operator or the trainer")
    return [outputs[index] for index in range(len(prompts))]


async def answer(make: Callable[[], protocol.Json]) -> Response:
    """A JSON response. `make` builds the body in a thread, because the body may have a million numbers."""
    content = await asyncio.to_thread(lambda: msgspec.json.encode(make()))
    return Response(content, media_type="application/json")


def attach(app: FastAPI) -> frozenset[str]:
    """Add the routes to `app`; returns the paths that need the control key."""
    app.include_router(router)
    return trl_legacy_weights.attach(app)
