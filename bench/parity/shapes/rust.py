"""Requests to vLLM's Rust front end: those of the other modules that it has a route for, and what only it needs."""

from dataclasses import replace
from typing import Any

from bench.parity.profiles import RUST_PROFILES
from bench.parity.shape import MODEL, Profile, Shape, both_ways, chat, completion
from bench.parity.shapes import all_shapes
from bench.parity.shapes.completions import FRANCE
from bench.parity.shapes.structured import ASK, GRAMMAR, PERSON
from bench.parity.shapes.tools import calls, choices

GENERATE = "/inference/v1/generate"
ROUTES = {
    *("/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", GENERATE),
    *("/health", "/version", "/metrics", "/load"),
}
"""Routes of the Rust front end that serve users (vLLM's rust/src/server/src/routes.rs)."""

DATE = r"\d{4}-\d{2}-\d{2}"
ENDLESS = "root ::= root"
"""A grammar that matches no text."""
LONG_CHOICE = {"choice": [f"answer number {i} of many" for i in range(11_000)]}
"""More values and more bytes than tritonlive's default limits of a grammar."""
INVALID: dict[str, dict[str, Any]] = {
    "regex": {"regex": "(["},
    "grammar": {"grammar": "root := ???"},
    "schema": {"json": {"type": "no-such-type"}},
    "dangling-ref": {"json": {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}},
    "endless-grammar": {"grammar": ENDLESS},
}
"""Grammars that the Rust front end lets through and no engine can use."""
JSON_CALL = r'\{"name": "get_weather", "arguments": \{"city": "(Paris|Rome)", "unit": "(celsius|fahrenheit)"\}\}'
JSON_ADD = r'\{"name": "add", "arguments": \{"a": [0-9], "b": [0-9]\}\}'
FATAL = "bad/completions/prompt-out-of-vocabulary"
"""Ends the engine of `vllm serve` with its Rust front end, which lets the token through. So it comes last."""
BUSY_TEMPLATE = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
"""Its rendering takes more instructions than vLLM's limit of a template."""
EXTRAS: Profile = "extras"


def rust_shapes() -> list[Shape]:
    """All requests in the order of sending."""
    known = [shape for shape in all_shapes() if is_served(shape) and shape.name != FATAL]
    fatal = [shape for shape in all_shapes() if shape.name == FATAL]
    return [*known, *json_tools(), *inference(), *completions(), *chats(), *refused_by_the_model(), *fatal]


def is_served(shape: Shape) -> bool:
    """Whether the Rust front end has the route and the parsers. Bad requests to a missing route have an answer, too.

    It has reasoning parsers, too, but none of them works with the vocabulary of the models of this comparison.
    """
    if shape.profile not in RUST_PROFILES or shape.name.startswith("chat/reasoning/"):
        return False
    return shape.path in ROUTES or shape.name.startswith("bad/")


def json_tools() -> list[Shape]:
    """Tool calls through a second parser."""
    return [
        *choices("phi4_mini_json"),
        *calls("phi4_mini_json", rf"functools\[{JSON_CALL}\]", rf"functools\[{JSON_CALL}, {JSON_ADD}\]"),
    ]


def inference() -> list[Shape]:
    """`/inference/v1/generate`, which takes and gives tokens. The shapes of routes.py send three requests to it."""
    structured: dict[str, dict[str, Any]] = {
        "json": {"json": PERSON},
        "regex": {"regex": DATE},
        "choice": {"choice": ["red", "blue"]},
        "grammar": {"grammar": GRAMMAR},
    }
    return [
        *both_ways(generate("seed", {"temperature": 1.0, "seed": 1234, "max_tokens": 16})),
        *both_ways(generate("logprobs", {"logprobs": 2})),
        *both_ways(generate("stop-token-ids", {"stop_token_ids": [28, 30], "max_tokens": 24})),
        *both_ways(generate("return-token-ids", {}, return_token_ids=True)),
        *both_ways(generate("usage", {}), include_usage=True)[1:],
        generate("prompt-logprobs", {"prompt_logprobs": 2}),
        generate("prompt-logprob-token-ids", {"prompt_logprob_token_ids": [[504, 314]] * len(FRANCE)}),
        generate("logit-bias", {"logit_bias": {"504": 100}}),
        generate("penalties", {"presence_penalty": 1.5, "repetition_penalty": 1.3}),
        generate("stop", {"stop": [" Paris"], "max_tokens": 16}),
        generate("n2", {"n": 2}),
        generate("max-tokens-0", {"max_tokens": 0}),
        generate("no-tokens", {}, token_ids=[]),
        generate("out-of-vocabulary", {}, token_ids=[10**7]),
        generate("too-long", {}, token_ids=[504] * 3000),
        generate("unknown-model", {}, model="nobody"),
        *(
            generate(f"structured/{name}", {"structured_outputs": kind, "max_tokens": 64})
            for name, kind in structured.items()
        ),
    ]


def generate(name: str, params: dict[str, Any], **fields: Any) -> Shape:
    """A greedy request of 8 tokens to the server that has the route."""
    body = {
        "model": MODEL,
        "token_ids": FRANCE,
        "sampling_params": {"temperature": 0, "max_tokens": 8, **params},
        **fields,
    }
    return Shape(f"generate/{name}", GENERATE, body, profile=EXTRAS)


def completions() -> list[Shape]:
    """Fields that reach the engine in another way than through vLLM's Python server."""
    return [
        *both_ways(completion("rust/grammar", "SQL: ", structured_outputs={"grammar": GRAMMAR}, max_tokens=24)),
        *both_ways(completion("rust/choice", "Colour: ", structured_outputs={"choice": ["red", "blue"]})),
        *both_ways(completion("rust/json", ASK, structured_outputs={"json": PERSON}, max_tokens=96)),
        *both_ways(completion("rust/repetition", "a a a", ignore_eos=True, max_tokens=48, **repetition())),
        completion("rust/logprobs-all", logprobs=-1, max_tokens=1),
        completion("rust/logprob-token-ids", logprobs=1, logprob_token_ids=[504, 314], max_tokens=3),
        completion("rust/stop-five", stop=["1", "2", "3", "4", "5"]),
        completion("rust/session", session_id="one", cache_salt="salt", priority=3),
        completion("rust/max-tokens-1-stream-usage", max_tokens=1, stream=True, stream_options={"include_usage": True}),
        replace(completion("rust/request-id-header"), headers={"X-Request-Id": "mine-0002"}),
        replace(completion("rust/priority-header"), headers={"X-Vllm-Priority": "2"}),
        replace(completion("rust/rank-0-header"), headers={"X-data-parallel-rank": "0"}),
        replace(completion("rust/rank-9-header"), headers={"X-data-parallel-rank": "9"}),
    ]


def chats() -> list[Shape]:
    """Chats with structured outputs, streamed, and options of the template."""
    return [
        *both_ways(chat("rust/grammar", "SQL, please.", structured_outputs={"grammar": GRAMMAR}))[1:],
        *both_ways(chat("rust/json", ASK, structured_outputs={"json": PERSON}, max_tokens=96, checks=("is_person",))),
        *both_ways(chat("rust/json-object", ASK, structured_outputs={"json_object": True}, max_tokens=24)),
        chat("rust/no-whitespace", ASK, structured_outputs={"json": PERSON, "disable_any_whitespace": True}),
        chat("rust/whitespace-pattern", ASK, structured_outputs={"json": PERSON, "whitespace_pattern": " ?"}),
        chat("rust/template", chat_template="{% for m in messages %}{{ m.content }}{% endfor %} Answer:"),
        chat(
            "rust/template-loop",
            chat_template="{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        ),
        chat("rust/template-kwargs-messages", chat_template_kwargs={"messages": [{"role": "user", "content": "One"}]}),
        chat("rust/reasoning-effort", reasoning_effort="low"),
        chat("rust/thinking-budget", thinking_token_budget=4),
        chat("rust/tool-twice", tools=[{"type": "function", "function": {"name": "f"}}] * 2),
    ]


def refused_by_the_model() -> list[Shape]:
    """Grammars that the model refuses. The protocol of the engine has no field for its reason."""
    return [
        *(
            shape
            for name, grammar in INVALID.items()
            for shape in (
                *both_ways(completion(f"rust/invalid-{name}", structured_outputs=grammar)),
                *both_ways(chat(f"rust/invalid-{name}", structured_outputs=grammar)),
            )
        ),
        generate("structured/invalid", {"structured_outputs": {"regex": "(["}}),
        *both_ways(completion("rust/long-choice", structured_outputs=LONG_CHOICE)),
        completion("rust/after-the-refusals"),
    ]


def repetition() -> dict[str, Any]:
    """A condition that ends a generation in `repetition`."""
    return {"repetition_detection": {"max_pattern_size": 4, "min_count": 4}}
