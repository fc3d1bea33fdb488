"""Tool calls that were cut short, and arguments that are no object: vLLM's parsers, mended.

Faults of vllm.parser.abstract_parser and vllm/tool_parsers in vLLM 0.32; no version without them yet:

- A call that `max_tokens` or a stop string cuts short is streamed as far as it goes, but lost when the answer is
  whole: its markup is the content (vllm#47903). Here both are what is streamed.
- A call cut off after its name is streamed with arguments that the model never wrote, `{}` (vllm#46303).
- A text that ends in the first character of the parser's marker loses it when streamed (vllm#42213).
- `required` and named calls leave arguments without `strict` free, so that a model may write a bare string. Here they
  are an object; `--tool-strict-level parameter` holds them to the tool's schema.
"""

import json
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from openai_frontend.vllm_seam import (
    DelegatingParser,
    DeltaMessage,
    FunctionCall,
    Hermes2ProToolParser,
    extract_required_tool_call_streaming,
    partial_tag_overlap,
)

ANY_OBJECT = {"type": "object", "additionalProperties": True}
# A schema with one of these says what it takes in another way than by `type`.
COMBINED = frozenset({"$ref", "allOf", "anyOf", "oneOf", "enum", "const"})


def guarded(parser: type | None) -> type | None:
    """A subclass of one of vLLM's parsers without the faults. Parsers of another kind parse both ways alike."""
    if parser is None or not issubclass(parser, DelegatingParser):
        return parser
    return type(f"Guarded{parser.__name__}", (GuardedParser, parser), {})


class GuardedParser(DelegatingParser):
    """Mixed into the class that vLLM composes from a reasoning and a tool parser."""

    def _extract_tool_calls(
        self, content: str | None, request: Any, enable_auto_tools: bool = False
    ) -> tuple[list[FunctionCall] | None, str | None]:
        calls, rest = super()._extract_tool_calls(content, request, enable_auto_tools)
        parser = self._tool_parser
        if calls or not content or parser is None or not request.tools or request.tool_choice == "none":
            return calls, rest
        if request.tool_choice == "required" and parser.supports_required_and_named:
            delta, _ = extract_required_tool_call_streaming(
                previous_text="", current_text=content, tool_call_idx=None, tool_call_id_type="random"
            )
            return calls_of(delta), None
        if isinstance(parser, Hermes2ProToolParser) and (enable_auto_tools or request.tool_choice != "auto"):
            if held_back(parser, content) < 2 and parser.tool_call_start_token not in content:
                return calls, rest
            fresh = type(parser)(self.model_tokenizer, request.tools)
            delta = fresh.extract_tool_calls_streaming("", content, content, (), (), (), request)
            return calls_of(delta), delta.content if delta else None
        return calls, rest

    def finalize_generation(self, delta_message: DeltaMessage | None, request: Any, state: Any) -> DeltaMessage | None:
        parser = self._tool_parser
        if (
            isinstance(parser, Hermes2ProToolParser)
            and request.tool_choice != "none"
            and parser.tool_call_start_token not in state.previous_text
            and held_back(parser, state.previous_text) == 1
        ):
            delta_message = delta_message or DeltaMessage()
            delta_message.content = (delta_message.content or "") + state.previous_text[-1]
        return super().finalize_generation(delta_message, request, state)

    def _append_unstreamed_tool_args(self, delta_message: DeltaMessage | None) -> None:
        parser = self._tool_parser
        if isinstance(parser, Hermes2ProToolParser) and not all(
            "arguments" in call for call in parser.prev_tool_call_arr[-1:]
        ):
            return
        super()._append_unstreamed_tool_args(delta_message)

    def _apply_structural_tag(self, request: Any) -> Any:
        is_forced = bool(request.tools) and request.tool_choice not in (None, "none", "auto")
        if is_forced:
            check_parameters(request.tools)
        before = request.structured_outputs
        request = super()._apply_structural_tag(request)
        after = request.structured_outputs
        if is_forced and after is not before and after is not None and after.structural_tag is not None:
            tag = with_objects(json.loads(after.structural_tag))
            request.structured_outputs = StructuredOutputsParams(structural_tag=json.dumps(tag))
        return request


def held_back(parser: Hermes2ProToolParser, text: str) -> int:
    """How many characters at the end of `text` may begin a call, so that they are not streamed."""
    return partial_tag_overlap(text, parser.tool_call_start_token)


def calls_of(delta: DeltaMessage | None) -> list[FunctionCall]:
    """The calls of a delta that has all of them. Each has the arguments as far as they were generated."""
    calls: dict[int, FunctionCall] = {}
    for piece in delta.tool_calls if delta else ():
        if piece.function is None:
            continue
        call = calls.setdefault(piece.index, FunctionCall(id=piece.id, name="", arguments=""))
        call.name += piece.function.name or ""
        call.arguments += piece.function.arguments or ""
    return list(calls.values())


def check_parameters(tools: Any) -> None:
    """Raises VLLMValidationError for a function whose parameters are no object."""
    for index, tool in enumerate(tools):
        function = getattr(tool, "function", tool)
        kind = (getattr(function, "parameters", None) or {}).get("type", "object")
        if isinstance(kind, str) and kind != "object":
            field = f"tools[{index}].parameters" if function is tool else f"tools[{index}].function.parameters"
            raise VLLMValidationError(f"{field}: type must be 'object', not {kind!r}", parameter="tools")


def with_objects(node: Any) -> Any:
    """A structural tag in which every JSON schema takes objects only."""
    if isinstance(node, list):
        return [with_objects(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "json_schema" and "json_schema" in node:
        schema = node["json_schema"]
        if schema is True or schema == {}:
            return node | {"json_schema": ANY_OBJECT}
        if isinstance(schema, dict) and "type" not in schema and COMBINED.isdisjoint(schema):
            return node | {"json_schema": {"type": "object"} | schema}
        return node
    return {key: with_objects(value) for key, value in node.items()}
