"""Every door by which a client asks for a constrained generation, and what comes back, in one form."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from sync import Rollouts
from sync.errors import ControlError
from tritonlive.launch import Stack

from .conftest import MODEL, bearer

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
PROMPT = {"model": MODEL, "prompt": "Hello", "temperature": 0}
IDS = [504, 3575, 282]
NATIVE = "/v2/models/llm/generate"


@dataclass(frozen=True)
class Answer:
    """Status and body of an answer. Rollouts have a status, too: 200, or 400 and 500 for their exceptions."""

    status: int
    text: str


def front_end(stack: Stack, path: str, body: dict[str, Any]) -> Answer:
    answer = httpx.post(stack.frontend_url + path, json=body, headers=bearer(stack.api_key), timeout=120)
    return Answer(answer.status_code, answer.text)


def native(stack: Stack, path: str, params: dict[str, Any], **tensors: Any) -> Answer:
    body = {"text_input": "Hello", "sampling_parameters": json.dumps(params), "return_finish_reason": True, **tensors}
    body["api_key"] = stack.api_key
    answer = httpx.post(stack.http_url + path, json=body, timeout=120)
    return Answer(answer.status_code, answer.text)


def rollouts(stack: Stack, params: dict[str, Any]) -> Answer:
    with Rollouts(f"grpc://{stack.grpc_url}", api_key=stack.api_key, timeout=120) as client:
        try:
            batch = client.generate([IDS], n=2, **params)
        except ControlError as error:
            return Answer(400 if type(error).__name__ == "InvalidError" else 500, str(error))
    return Answer(200, str(batch.finish_reasons))


def trl(stack: Stack, params: dict[str, Any]) -> Answer:
    rest = dict(params)
    regex = rest.pop("structured_outputs")["regex"]
    body = {"prompts": ["Hello"], "structured_outputs_regex": regex, "max_tokens": rest.pop("max_tokens")}
    return front_end(stack, "/generate/", body | {"generation_kwargs": rest})


DOORS: dict[str, Callable[[Stack, dict[str, Any]], Answer]] = {
    "chat": lambda stack, params: front_end(stack, "/v1/chat/completions", CHAT | params),
    "chat stream": lambda stack, params: front_end(stack, "/v1/chat/completions", CHAT | params | {"stream": True}),
    "completions": lambda stack, params: front_end(stack, "/v1/completions", PROMPT | params),
    "completions stream": lambda stack, params: front_end(stack, "/v1/completions", PROMPT | params | {"stream": True}),
    "trl": trl,
    "native": lambda stack, params: native(stack, NATIVE, params),
    "native stream": lambda stack, params: native(stack, f"{NATIVE}_stream", params, stream=True),
    "rollouts": rollouts,
}
"""By name; each takes sampling parameters with `structured_outputs` (a regex) and `max_tokens`."""
