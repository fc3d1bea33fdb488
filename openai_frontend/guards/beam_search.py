"""Refuses sampling parameters that beam search drops, and one that only beam search has.

vLLM 0.32 makes BeamSearchParams of a request that has `use_beam_search` (`to_beam_search_params` in
vllm.entrypoints.openai.*.protocol) and leaves out everything that it has no field for: stop strings, penalties,
grammars … (vllm#9253, vllm#22696). No version of vLLM honours all of them yet.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import BeamSearchParams, SamplingParams

HONOURED = frozenset(
    {
        "n",  # the beam's width
        "logprobs",
        "seed",  # beam search draws nothing by lot
        "stream_interval",
    }
)
"""Parameters without a field in BeamSearchParams that lose nothing."""
NEUTRAL: dict[str, tuple[Any, ...]] = {"top_k": (0, -1), "thinking_token_budget": (-1,)}
"""Values that mean "off", beside the default of SamplingParams."""


def parameters(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Name and default of each parameter."""
    return {field.name: field.default for field in msgspec.structs.fields(kind) if not field.name.startswith("_")}


DROPPED = {
    name: default
    for name, default in parameters(SamplingParams).items()
    if name not in parameters(BeamSearchParams).keys() | HONOURED
} | {"structured_outputs": None, "response_format": None}
"""Parameters that beam search drops, with their defaults. vLLM never sets structured_outputs of BeamSearchParams."""


def check(body: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raises VLLMValidationError for the first parameter of `body`, of those its model knows, that would be dropped."""
    if not body.get("use_beam_search"):
        if body.get("length_penalty", 1) not in (None, 1):
            raise VLLMValidationError(
                "length_penalty: only beam search uses it; set use_beam_search, too", parameter="length_penalty"
            )
        return
    for name in DROPPED.keys() & body.keys() & known:
        if is_set(name, body[name]):
            raise VLLMValidationError(f"{name}: beam search does not support it; leave it out", parameter=name)
    choice = body.get("tool_choice")
    if choice == "required" or isinstance(choice, dict):
        raise VLLMValidationError(
            "tool_choice: beam search cannot force a call; use 'auto' or leave it out", parameter="tool_choice"
        )


def is_set(name: str, value: Any) -> bool:
    """Whether a parameter asks for something. An empty list or object does not."""
    if value is None or value in ([], {}, "") or value == DROPPED[name] or value in NEUTRAL.get(name, ()):
        return False
    return not (name == "response_format" and isinstance(value, dict) and value.get("type") == "text")
