"""Tool calls: auto, required, named and none, through two tool parsers, streaming and not; and reasoning.

SmolLM2-135M rarely calls a tool by itself. Where a shape needs a call, a regex restricts the model to the parser's
format. The model's choice within that format and the parser's output are compared like any other answer.
"""

from typing import Any

from bench.parity.shape import Profile, Shape, both_ways, chat

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 24},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two small numbers.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "minimum": 0, "maximum": 99},
                "b": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
LOOSE = {"type": "function", "function": {**WEATHER["function"], "strict": None}}
"""Without `strict`, vLLM's hermes parser enforces the name of a named call, but not its schema."""

NO_PARAMETERS: dict[str, Any] = {"type": "function", "function": {"name": "now", "description": "The time."}}

QUESTION = "What is the weather in Paris, in celsius?"
HERMES_CALL = (
    r'<tool_call>\n\{"name": "get_weather", "arguments": '
    r'\{"city": "(Paris|Rome)", "unit": "(celsius|fahrenheit)"\}\}\n</tool_call>'
)
HERMES_TWO = HERMES_CALL + r'\n<tool_call>\n\{"name": "add", "arguments": \{"a": [0-9], "b": [0-9]\}\}\n</tool_call>'
PYTHONIC_CALL = r"\[get_weather\(city='(Paris|Rome)', unit='(celsius|fahrenheit)'\)\]"
PYTHONIC_TWO = r"\[get_weather\(city='(Paris|Rome)', unit='celsius'\), add\(a=[0-9], b=[0-9]\)\]"


def shapes() -> list[Shape]:
    """All requests with tools, for both parsers, and all with reasoning."""
    return [
        *choices("hermes"),
        *calls("hermes", HERMES_CALL, HERMES_TWO),
        *templates(),
        *choices("pythonic"),
        *calls("pythonic", PYTHONIC_CALL, PYTHONIC_TWO),
        *reasoning(),
    ]


def named(tool: dict[str, Any]) -> dict[str, Any]:
    """A `tool_choice` that names the tool."""
    return {"type": "function", "function": {"name": tool["function"]["name"]}}


def choices(profile: Profile) -> list[Shape]:
    """All kinds of `tool_choice`. Named and required calls have a strict schema, so their arguments must validate."""
    both = [WEATHER, ADD]
    at = f"tools-{profile}"
    valid = ("calls_in_tool_calls", "arguments_validate")
    return [
        *both_ways(chat(f"{at}/auto", QUESTION, tools=both, max_tokens=32, profile=profile)),
        *both_ways(chat(f"{at}/none", QUESTION, tools=both, tool_choice="none", profile=profile)),
        *both_ways(
            chat(
                f"{at}/named",
                QUESTION,
                tools=both,
                tool_choice=named(WEATHER),
                max_tokens=96,
                profile=profile,
                checks=valid,
            )
        ),
        chat(
            f"{at}/named-add",
            "What is 3 plus 4?",
            tools=both,
            tool_choice=named(ADD),
            max_tokens=96,
            profile=profile,
            checks=valid,
        ),
        *both_ways(
            chat(
                f"{at}/required",
                QUESTION,
                tools=[WEATHER],
                tool_choice="required",
                max_tokens=128,
                profile=profile,
                checks=valid,
            )
        ),
        chat(
            f"{at}/named-n2",
            QUESTION,
            tools=both,
            tool_choice=named(WEATHER),
            max_tokens=96,
            n=2,
            temperature=0.5,
            seed=3,
            profile=profile,
            checks=valid,
        ),
        chat(
            f"{at}/named-loose", QUESTION, tools=[LOOSE, ADD], tool_choice=named(LOOSE), max_tokens=48, profile=profile
        ),
        chat(f"{at}/no-parameters", "What time is it?", tools=[NO_PARAMETERS], max_tokens=8, profile=profile),
        chat(f"{at}/named-too-short", QUESTION, tools=both, tool_choice=named(WEATHER), max_tokens=3, profile=profile),
    ]


def calls(profile: Profile, one: str, two: str) -> list[Shape]:
    """Automatic calls in the parser's format."""
    both = [WEATHER, ADD]
    at = f"tools-{profile}"
    checks = ("calls_in_tool_calls", "arguments_validate")
    fixed = {"tools": both, "tool_choice": "auto", "max_tokens": 128, "profile": profile}
    return [
        *both_ways(chat(f"{at}/auto-call", QUESTION, structured_outputs={"regex": one}, checks=checks, **fixed)),
        *both_ways(chat(f"{at}/auto-two-calls", QUESTION, structured_outputs={"regex": two}, checks=checks, **fixed)),
        *both_ways(
            chat(f"{at}/auto-text-and-call", QUESTION, structured_outputs={"regex": "I look\\.\n" + one}, **fixed)
        ),
        *both_ways(
            chat(f"{at}/auto-cut-call", QUESTION, structured_outputs={"regex": one}, **{**fixed, "max_tokens": 14})
        ),
        chat(
            f"{at}/auto-call-logprobs",
            QUESTION,
            structured_outputs={"regex": one},
            logprobs=True,
            top_logprobs=1,
            return_token_ids=True,
            stream=True,
            stream_options={"include_usage": True},
            **fixed,
        ),
        chat(f"{at}/one-call-only", QUESTION, structured_outputs={"regex": two}, parallel_tool_calls=False, **fixed),
    ]


def templates() -> list[Shape]:
    """Tools together with other parameters."""
    return [
        chat("tools-hermes/auto-logprobs", QUESTION, tools=[WEATHER], logprobs=True, top_logprobs=2),
        chat("tools-hermes/auto-stop", QUESTION, tools=[WEATHER], stop=["."], max_tokens=48),
        chat("tools-hermes/empty-list", QUESTION, tools=[]),
    ]


def reasoning() -> list[Shape]:
    """Reasoning, on the server that has a reasoning parser."""
    begin, end = "Here is my thought process: ", " Here is my response: "
    thought = {"structured_outputs": {"regex": f"{begin}(Yes|No)\\.{end}(Paris|Rome)\\."}, "max_tokens": 48}
    open_end = {"structured_outputs": {"regex": f"{begin}(Yes|No), (yes|no)\\."}, "max_tokens": 48}
    fixed: dict[str, Any] = {"profile": "extras"}
    return [
        *both_ways(chat("reasoning/text", **thought, **fixed)),
        *both_ways(chat("reasoning/left-out", include_reasoning=False, **thought, **fixed)),
        *both_ways(chat("reasoning/without-an-end", **open_end, **fixed)),
        chat("reasoning/usage", stream=True, stream_options={"include_usage": True}, **thought, **fixed),
    ]
