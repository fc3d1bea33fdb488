"""openai_frontend/guards/ignored_fields.py with its table: what is refused, what is not, and where."""

from typing import Any, get_args

import pytest
from fastapi import APIRouter, Depends, FastAPI
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponsesParams
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from vllm.config import StructuredOutputsConfig
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest
from vllm.entrypoints.serve.tokenize.protocol import TokenizeRequest
from vllm.exceptions import VLLMValidationError

from openai_frontend.guards.beam_search import DROPPED
from openai_frontend.guards.field_table import HARMLESS, HONOURED, REPLACED
from openai_frontend.guards.ignored_fields import IgnoredFields, attach, names_of
from openai_frontend.routes.trl_protocol import ChatRequest, GenerateRequest
from openai_frontend.vllm_seam import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
    validate_json_request,
)

SDK = [(ChatParams, ChatCompletionRequest), (CompletionParams, CompletionRequest), (ResponsesParams, ResponsesRequest)]


def refusal(model: Any, /, **body: Any) -> VLLMValidationError | None:
    try:
        IgnoredFields(StructuredOutputsConfig()).check(body, model)
    except VLLMValidationError as error:
        return error
    return None


@pytest.mark.row(46)
@pytest.mark.parametrize(
    ("model", "field", "value", "advice"),
    [
        (ChatCompletionRequest, "temprature", 0.1, "did you mean temperature?"),
        (ChatCompletionRequest, "max_new_tokens", 3, "use max_completion_tokens"),
        (ChatCompletionRequest, "enable_thinking", False, "chat_template_kwargs"),
        (ChatCompletionRequest, "guided_json", {}, "structured_outputs"),
        (ChatCompletionRequest, "functions", [], "use tools"),
        (ChatCompletionRequest, "modalities", ["text", "audio"], "text only"),
        (ChatCompletionRequest, "xyzzy", 1, "--ignore-unknown-fields"),
        (CompletionRequest, "max_completion_tokens", 3, "use max_tokens"),
        (CompletionRequest, "best_of", 4, "use n"),
        (BatchChatCompletionRequest, "best_of", 4, "use n"),
        (BatchChatCompletionRequest, "min_token", 4, "did you mean min_tokens?"),
        (ResponsesRequest, "max_tokens", 3, "use max_output_tokens"),
        (ResponsesRequest, "conversation", "c", "input"),
        (ResponsesRequest, "min_tokens", 3, "unknown field"),
        (AnthropicMessagesRequest, "stop", ["x"], "use stop_sequences"),
        (AnthropicCountTokensRequest, "sistem", "x", "did you mean system?"),
        (TokenizeRequest, "add_special_token", True, "did you mean add_special_tokens?"),
        (GenerateRequest, "temprature", 0.1, "did you mean temperature?"),
        (ChatRequest, "max_new_tokens", 3, "use max_tokens"),
    ],
)
def test_a_field_without_effect_is_refused_with_the_one_to_use(model: Any, field: str, value: Any, advice: str) -> None:
    error = refusal(model, **{field: value})
    assert error is not None
    assert error.parameter == field
    assert str(error).startswith(f"{field}: ")
    assert advice in str(error)


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_a_harmless_field_is_taken(name: str) -> None:
    assert all(refusal(model, **{name: "x"}) is None for model in (ChatCompletionRequest, AnthropicMessagesRequest))


@pytest.mark.parametrize(("sdk", "model"), SDK)
def test_every_field_of_openais_sdk_is_known_or_in_the_table(sdk: Any, model: Any) -> None:
    """A new SDK may bring fields; each needs a decision."""
    assert sdk.__annotations__.keys() <= names_of(model) | HARMLESS.keys() | REPLACED.keys()


@pytest.mark.parametrize("model", [model for _, model in SDK])
def test_null_and_what_the_server_does_anyway_are_taken(model: Any) -> None:
    nulls = dict.fromkeys([*REPLACED, "xyzzy", "temprature"])
    assert refusal(model, **nulls) is None
    assert refusal(model, best_of=1, modalities=["text"], verbosity="medium", early_stopping=False) is None


def test_no_field_of_the_table_is_one_that_vllm_honours() -> None:
    models = [model for _, model in SDK] + [AnthropicMessagesRequest, *get_args(TokenizeRequest)]
    honoured = frozenset().union(*(names_of(model) for model in models))
    assert honoured & (REPLACED.keys() - HONOURED) == set()


def test_what_trl_sends_is_taken() -> None:
    """Every field of the requests of TRL 1.10 and 1.16."""
    sampling = {"n": 2, "repetition_penalty": 1.0, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    common = {**sampling, "max_tokens": 4, "return_token_ids": True, "return_tokens_as_token_ids": True}
    structured = {"structured_outputs": {"regex": "a"}}
    assert refusal(CompletionRequest, prompt=[[1]], logprobs=0, prompt_logprobs=1, **common, **structured) is None
    chat = {"tools": [{}], "tool_choice": "none", "chat_template": "x", "chat_template_kwargs": {}}
    assert refusal(ChatCompletionRequest, messages=[], logprobs=True, top_logprobs=1, **common, **chat) is None
    legacy = {**sampling, "max_tokens": 4, "logprobs": 0, "structured_outputs_regex": None, "generation_kwargs": {}}
    assert refusal(GenerateRequest, prompts=["a"], images=None, **legacy) is None
    assert refusal(ChatRequest, messages=[[]], chat_template_kwargs={}, tools=None, **legacy) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stream_options", {"include_usge": True}),
        ("structured_outputs", {"regex": "a", "rgex": "b"}),
        ("structured_outputs", {"json": {}, "disable_any_whitespace": True}),
        ("structured_outputs", {"json": {}, "whitespace_pattern": " "}),
    ],
)
def test_a_field_of_an_inner_object_without_effect_is_refused(name: str, value: Any) -> None:
    error = refusal(ChatCompletionRequest, **{name: value})
    assert error is not None
    assert (error.parameter or "").startswith(f"{name}.")


def test_an_option_of_whitespace_that_the_engine_has_is_taken() -> None:
    config = StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True)
    body = {"structured_outputs": {"json": {}, "disable_any_whitespace": True}}
    IgnoredFields(config).check(body, ChatCompletionRequest)
    assert refusal(ChatCompletionRequest, **body) is not None
    assert refusal(ChatCompletionRequest, stream_options={"include_obfuscation": False, "include_usage": True}) is None


SET = {"stop": ["x"], "stop_token_ids": [1], "logit_bias": {"1": 1}, "min_tokens": 1, "bad_words": ["x"]} | {
    "structured_outputs": {"choice": ["a"]},
    "response_format": {"type": "json_object"},
    "repetition_penalty": 2.0,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.1,
    "allowed_token_ids": [1],
    "prompt_logprobs": 1,
    "repetition_detection": {"max_pattern_size": 2, "min_count": 2},
    "thinking_token_budget": 3,
    "spaces_between_special_tokens": False,
}


@pytest.mark.row(46)
@pytest.mark.parametrize("name", sorted(SET))
def test_what_beam_search_drops_is_refused(name: str) -> None:
    body = {name: SET[name]}
    for model in (CompletionRequest, ChatCompletionRequest):
        assert refusal(model, **body) is None
        error = refusal(model, use_beam_search=True, **body)
        assert error is not None
        assert error.parameter == name


def test_the_test_of_beam_search_has_every_parameter_that_a_request_can_set() -> None:
    settable = DROPPED.keys() & names_of(CompletionRequest)
    # vLLM refuses the first with beam search; the second belongs to kernels that no test has.
    assert settable - SET.keys() == {"logprob_token_ids", "routed_experts_prompt_start"}


def test_beam_search_takes_what_it_honours_and_what_asks_for_nothing() -> None:
    nothing: dict[str, Any] = {"stop": [], "top_p": 1, "top_k": -1, "repetition_penalty": 1.0, "logit_bias": None}
    honoured = {"n": 2, "temperature": 0, "length_penalty": 2.0, "ignore_eos": True, "logprobs": 1, "seed": 1}
    assert refusal(CompletionRequest, use_beam_search=True, **nothing, **honoured) is None
    assert refusal(ChatCompletionRequest, use_beam_search=True, response_format={"type": "text"}) is None
    assert refusal(ChatCompletionRequest, use_beam_search=True, tool_choice="required") is not None
    assert refusal(CompletionRequest, length_penalty=2.0) is not None


def test_a_request_that_asks_for_no_answer_is_not_checked() -> None:
    assert refusal(LoadLoRAAdapterRequest, lora_name="x", anything=1) is None


def test_it_is_a_part_of_vllms_own_dependency_and_reads_the_body_that_was_parsed() -> None:
    app, router = FastAPI(), APIRouter(dependencies=[Depends(validate_json_request)])

    @app.exception_handler(VLLMValidationError)
    async def refuse(_: Request, error: VLLMValidationError) -> JSONResponse:
        return JSONResponse(error.parameter, 400)

    @router.post("/v1/completions")
    async def complete(request: CompletionRequest) -> Any:
        return request.prompt

    @router.post("/invocations")
    async def invoke(raw_request: Request) -> Any:
        return (await raw_request.json())["prompt"]

    @app.post("/else")
    async def other(request: CompletionRequest) -> Any:
        return request.prompt

    app.include_router(router)
    attach(app, StructuredOutputsConfig())
    client = TestClient(app)
    for path in ("/v1/completions", "/invocations"):
        assert client.post(path, json={"prompt": "a", "user": "u"}).json() == "a"
        answer = client.post(path, json={"prompt": "a", "guided_regex": "a"})
        assert (answer.status_code, answer.json()) == (400, "guided_regex")
    without_body = client.post("/v1/completions", content=b"", headers={"content-type": "application/json"})
    assert without_body.status_code == 422
    assert client.post("/else", json={"prompt": "a", "guided_regex": "a"}).json() == "a"
