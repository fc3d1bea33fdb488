"""A parity request: a named HTTP request, the profile of its server, and the checks of its answer."""

from dataclasses import dataclass, field
from typing import Any, Literal

MODEL = "parity"
"""Served model name of both servers."""

Checks = tuple[str, ...]
Profile = Literal["hermes", "pythonic", "phi4_mini_json", "extras"]
"""The server for a shape. Parsers and optional routes are start-up settings, see `bench.parity.profiles`."""


@dataclass(frozen=True)
class Shape:
    """One request.

    Args:
        name: unique name in recordings, differences and justifications.
        path: route with its query.
        body: sent as JSON; `bytes` are sent unchanged (for example malformed JSON).
        checks: names of functions in `bench.parity.checks` that the answer must also pass.
        only: `"status"` compares status and content type, not the body (metrics, generated documents).
    """

    name: str
    path: str
    body: dict[str, Any] | bytes | None = None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    profile: Profile = "hermes"
    checks: Checks = ()
    only: Literal["status"] | None = None


def completion(name: str, prompt: Any = "The capital of France is", **fields: Any) -> Shape:
    """A `/v1/completions` request at temperature 0; 8 tokens by default."""
    checks: Checks = fields.pop("checks", ())
    profile: Profile = fields.pop("profile", "hermes")
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
    return Shape(f"completions/{name}", "/v1/completions", body, checks=checks, profile=profile)


def chat(name: str, content: Any = "What is the capital of France?", **fields: Any) -> Shape:
    """A `/v1/chat/completions` request at temperature 0; 12 tokens by default.

    `content` is the user's message, or the whole list of messages.
    """
    checks: Checks = fields.pop("checks", ())
    profile: Profile = fields.pop("profile", "hermes")
    is_messages = isinstance(content, list) and all("role" in part for part in content)
    messages = content if is_messages else [{"role": "user", "content": content}]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 12, **fields}
    return Shape(f"chat/{name}", "/v1/chat/completions", body, checks=checks, profile=profile)


def both_ways(shape: Shape, **stream_options: Any) -> list[Shape]:
    """The shape, and its streaming variant."""
    if not isinstance(shape.body, dict):
        raise TypeError(f"{shape.name}: only a shape with a JSON body can stream")
    body = {**shape.body, "stream": True}
    if stream_options:
        body["stream_options"] = stream_options
    streaming = Shape(f"{shape.name}/stream", shape.path, body, checks=shape.checks, profile=shape.profile)
    return [shape, streaming]
