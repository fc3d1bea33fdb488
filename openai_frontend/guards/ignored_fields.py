"""Refuses a request that has a field without effect: a misspelt one, a removed one, one of another API.

vLLM 0.32 answers 200 as if the field were not there. Here such a request is answered 400 with the field's name and
the one to use, as OpenAI's own API does. `field_table.py` lists the exceptions. The check is a part of vLLM's own
dependency of its JSON routes, so that one place covers chat, completions, responses, messages, batch and rendering;
it sees the body that FastAPI has parsed already. `--ignore-unknown-fields` switches it off.
"""

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from openai_frontend.guards import beam_search, whitespace
from openai_frontend.guards.field_table import HARMLESS, HONOURED, NEUTRAL, REPLACED, SYNONYMS
from openai_frontend.vllm_seam import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    StreamOptions,
    validate_json_request,
)

OTHERWISE = "; a server started with --ignore-unknown-fields ignores it"
# How alike two names must be for one to be taken for the other misspelt.
LIKENESS = 0.75
# The batch route hands fields that its own model lacks to the chat model.
EXTENDED = {BatchChatCompletionRequest: ChatCompletionRequest}
NESTED: dict[str, Any] = {
    "sampling_params": SamplingParams,
    "stream_options": StreamOptions,
    "structured_outputs": StructuredOutputsParams,
}
"""Objects inside a body whose fields are checked, too."""
NESTED_HARMLESS = frozenset({"include_obfuscation"})
# A request model is checked if it has one of these: it asks for an answer, or for its prompt.
PROMPTS = frozenset(
    {
        *("messages", "prompt", "prompts", "input", "token_ids", "sequences"),
        *("documents", "queries", "query", "text_1", "texts"),
    }
)


class IgnoredFields:
    """The check. structured_outputs_config: the engine's; a request may repeat its settings, not change them."""

    def __init__(self, structured_outputs_config: Any) -> None:
        self._structured_outputs_config = structured_outputs_config

    async def validate(self, raw_request: Request) -> None:
        """vLLM's `validate_json_request`, then the check. Raises what that raises, and VLLMValidationError."""
        await validate_json_request(raw_request)
        try:
            body = await raw_request.json()  # parsed by FastAPI already, and kept
        except (ValueError, RecursionError):
            return  # no body, or none that FastAPI parses: vLLM's handler answers
        if isinstance(body, dict):
            self.check(body, model_of(raw_request.scope.get("route"), body))

    def check(self, body: Mapping[str, Any], model: Any) -> None:
        """Raises VLLMValidationError for the first field of `body`, a request for `model`, without effect."""
        known = names_of(model)
        if PROMPTS.isdisjoint(known):
            return
        if not body.keys() <= usual_names_of(model):
            for name, value in body.items():
                if value is not None and (reason := reason_against(name, value, known)):
                    raise VLLMValidationError(f"{name}: {reason}", parameter=name)
        for name in NESTED.keys() & body.keys() & known:
            check_nested(name, body[name])
        beam_search.check(body, known)
        if structured_outputs := body.get("structured_outputs"):
            whitespace.check(structured_outputs, self._structured_outputs_config)


def attach(app: FastAPI, structured_outputs_config: Any) -> None:
    """Have every JSON route of vLLM's check its body. Call it after the last route is added.

    FastAPI's `dependency_overrides` would inspect the dependency again for each request.
    """
    fields = IgnoredFields(structured_outputs_config)
    for route in app.router.routes:
        if isinstance(route, APIRoute):
            for dependency in route.dependant.dependencies:
                if dependency.call is validate_json_request:
                    dependency.call = fields.validate


def model_of(route: Any, body: Mapping[str, Any]) -> Any:
    """The request model of a route; that of /invocations, which takes several, is chosen by the body as vLLM does."""
    if isinstance(route, APIRoute) and route.body_field is not None:
        return route.body_field.field_info.annotation
    if "prompt" in body:
        return CompletionRequest
    return ChatCompletionRequest if "messages" in body else None


@cache
def names_of(model: Any) -> frozenset[str]:
    """The names of all fields of a request model, or of the models of a union. Empty for another type."""
    if get_origin(model) in (Union, UnionType):
        return frozenset().union(*(names_of(member) for member in get_args(model)))
    if isinstance(model, type) and issubclass(model, BaseModel):
        names = {name for key, field in model.model_fields.items() for name in (key, field.alias) if name}
        return frozenset(names) | (names_of(EXTENDED[model]) if model in EXTENDED else frozenset())
    if isinstance(model, type) and issubclass(model, msgspec.Struct):
        return frozenset(field.name for field in msgspec.structs.fields(model) if not field.name.startswith("_"))
    if dataclasses.is_dataclass(model):
        return frozenset(field.name for field in dataclasses.fields(model) if field.init)
    return frozenset()


@cache
def usual_names_of(model: Any) -> frozenset[str]:
    """The fields that need no closer look."""
    return (names_of(model) | HARMLESS.keys()) - (REPLACED.keys() - HONOURED)


def check_nested(name: str, value: Any) -> None:
    """Raises VLLMValidationError for a field of the object `value` that its type does not know."""
    if not isinstance(value, dict):
        return
    known = names_of(NESTED[name])
    for inner in value.keys() - known - NESTED_HARMLESS:
        if value[inner] is not None:
            raise VLLMValidationError(
                f"{name}.{inner}: unknown field{suggestion(inner, known)}{OTHERWISE}",
                parameter=f"{name}.{inner}",
            )


def reason_against(name: str, value: Any, known: frozenset[str]) -> str | None:
    """Why a field is refused; None if it is taken."""
    if name in REPLACED and not (name in HONOURED and name in known):
        return None if value in NEUTRAL.get(name, ()) else f"not supported: {REPLACED[name]}{OTHERWISE}"
    if name in known or name in HARMLESS:
        return None
    return f"unknown field{suggestion(name, known)}{OTHERWISE}"


def suggestion(name: str, known: frozenset[str]) -> str:
    """` (use X)` for a field that has another name here, or ` (did you mean X?)` for one with a similar name."""
    for synonyms in SYNONYMS:
        if name in synonyms and (found := next((each for each in synonyms if each in known), None)):
            return f" (use {found})"
    similar = get_close_matches(name, known, 1, LIKENESS)
    return f" (did you mean {similar[0]}?)" if similar else ""
