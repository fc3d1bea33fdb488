"""Invalid requests. Both servers must refuse them with the same status, error fields and message."""

from typing import Any

from bench.parity.shape import MODEL, Shape
from bench.parity.shapes.tools import WEATHER

TEXT = {"model": MODEL, "prompt": "Hello", "max_tokens": 4, "temperature": 0}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 4,
    "temperature": 0,
}
COMPLETIONS = "/v1/completions"
CHATS = "/v1/chat/completions"
DEEP: dict[str, Any] = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}


def text(name: str, **fields: Any) -> Shape:
    """A valid completion request with these fields replaced."""
    return Shape(f"bad/completions/{name}", COMPLETIONS, {**TEXT, **fields})


def chat(name: str, **fields: Any) -> Shape:
    """A valid chat request with these fields replaced."""
    return Shape(f"bad/chat/{name}", CHATS, {**CHAT, **fields})


def without(name: str, path: str, body: dict[str, Any], key: str) -> Shape:
    """A valid request without one field."""
    return Shape(name, path, {field: value for field, value in body.items() if field != key})


def raw(name: str, path: str, body: bytes, content_type: str = "application/json") -> Shape:
    """A request with a body of raw bytes."""
    return Shape(f"bad/{name}", path, body, headers={"Content-Type": content_type})


def shapes() -> list[Shape]:
    """All invalid requests. vLLM accepts a few of them; tritonlive then must accept them, too."""
    return [*http(), *models(), *numbers(), *prompts(), *messages(), *streams(), *structured(), *tools()]


def http() -> list[Shape]:
    """Invalid HTTP or JSON."""
    return [
        raw("malformed-json", COMPLETIONS, b'{"model": "parity", "prompt": '),
        raw("malformed-json-chat", CHATS, b"{'model': 1}"),
        raw("empty-body", COMPLETIONS, b""),
        raw("json-list", CHATS, b"[]"),
        raw("json-null", COMPLETIONS, b"null"),
        raw("invalid-utf8", COMPLETIONS, b'{"model": "parity", "prompt": "\xff\xfe"}'),
        raw("media-type-text", COMPLETIONS, b'{"model": "parity", "prompt": "a"}', "text/plain"),
        raw("media-type-form", CHATS, b"model=parity", "application/x-www-form-urlencoded"),
        Shape("bad/get-completions", COMPLETIONS, method="GET"),
        Shape("bad/get-chat", CHATS, method="GET"),
        Shape("bad/post-models", "/v1/models", {}),
        Shape("bad/delete-health", "/health", method="DELETE"),
        Shape("bad/unknown-route", "/v1/no/such/route", {}),
        Shape("bad/unknown-route-get", "/no-such", method="GET"),
        Shape("bad/trailing-slash", "/v1/models/", method="GET"),
    ]


def models() -> list[Shape]:
    """Unknown models."""
    return [
        text("unknown-model", model="nobody"),
        chat("unknown-model", model="nobody"),
        text("model-number", model=5),
        Shape("bad/tokenize-unknown-model", "/tokenize", {"model": "nobody", "prompt": "a"}),
        Shape("bad/detokenize-unknown-model", "/detokenize", {"model": "nobody", "tokens": [1]}),
        Shape("bad/detokenize-text", "/detokenize", {"model": MODEL, "tokens": ["a"]}),
        Shape("bad/detokenize-negative", "/detokenize", {"model": MODEL, "tokens": [-1]}),
        without("bad/completions/no-model", COMPLETIONS, TEXT, "model"),
        without("bad/chat/no-model", CHATS, CHAT, "model"),
        Shape("bad/lora-route", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "b"}),
    ]


def numbers() -> list[Shape]:
    """Parameters out of range or of a wrong type."""
    completions = [
        text("max-tokens-negative", max_tokens=-1),
        text("max-tokens-huge", max_tokens=10**9),
        text("max-tokens-text", max_tokens="many"),
        text("max-tokens-fraction", max_tokens=1.5),
        text("n-0", n=0),
        text("n-negative", n=-2),
        text("n-2-greedy", n=2),
        text("n-huge", n=10**9),
        text("best-of", best_of=3),
        text("temperature-3", temperature=3),
        text("temperature-negative", temperature=-0.1),
        text("temperature-text", temperature="hot"),
        text("top-p-0", top_p=0),
        text("top-p-2", top_p=2),
        text("top-k-negative", top_k=-5),
        text("min-p-2", min_p=2),
        text("presence-penalty-9", presence_penalty=9),
        text("frequency-penalty-9", frequency_penalty=-9),
        text("repetition-penalty-0", repetition_penalty=0),
        text("min-tokens-above-max", min_tokens=9),
        text("min-tokens-negative", min_tokens=-1),
        text("seed-text", seed="x"),
        text("seed-huge", seed=2**70),
        text("logprobs-huge", logprobs=10**6),
        text("logprobs-negative", logprobs=-2),
        text("prompt-logprobs-huge", prompt_logprobs=10**6),
        text("prompt-logprobs-stream", prompt_logprobs=1, stream=True),
        text("logit-bias-range", logit_bias={"504": 1000}),
        text("logit-bias-vocabulary", logit_bias={"99999999": 1}),
        text("logit-bias-word", logit_bias={"word": 1}),
        text("allowed-token-ids-empty", allowed_token_ids=[]),
        text("allowed-token-ids-vocabulary", allowed_token_ids=[10**8]),
        text("stop-number", stop=3),
        text("stop-empty", stop=[""]),
        text("stop-token-ids-text", stop_token_ids=["a"]),
        text("bad-words-empty", bad_words=[""]),
        text("truncate-negative", truncate_prompt_tokens=-5),
        text("truncate-too-long", truncate_prompt_tokens=10**6),
        text("suffix", suffix="end"),
        text("cache-salt-empty", cache_salt=""),
        text("priority", priority=1),
        text("echo-stream-prompt-logprobs", echo=True, stream=True, logprobs=1, prompt_logprobs=1),
        text("prompt-embeds", prompt=None, prompt_embeds="AAAA"),
        text("kv-transfer", kv_transfer_params={"a": 1}),
    ]
    chats = [
        chat("n-0", n=0),
        chat("n-huge", n=10**9),
        chat("temperature-3", temperature=3),
        chat("temperature-negative", temperature=-1),
        chat("max-tokens-0", max_tokens=0),
        chat("max-tokens-negative", max_tokens=-5),
        chat("max-completion-tokens-huge", max_completion_tokens=10**9),
        chat("top-logprobs-alone", top_logprobs=3),
        chat("top-logprobs-huge", logprobs=True, top_logprobs=10**6),
        chat("top-logprobs-negative", logprobs=True, top_logprobs=-3),
        chat("logprobs-number", logprobs=5),
        chat("stop-number", stop=3),
    ]
    return [*completions, *chats]


def prompts() -> list[Shape]:
    """Invalid prompts."""
    return [
        text("prompt-empty", prompt=""),
        text("prompt-empty-list", prompt=[]),
        text("prompt-list-of-empty", prompt=[[]]),
        text("prompt-null", prompt=None),
        text("prompt-number", prompt=5),
        text("prompt-object", prompt={"a": 1}),
        text("prompt-mixed", prompt=["a", 1]),
        text("prompt-out-of-vocabulary", prompt=[1, 49152]),
        text("prompt-far-out-of-vocabulary", prompt=[10**12]),
        text("prompt-negative-token", prompt=[-1]),
        text("prompt-too-long", prompt="word " * 3000),
        text("prompt-too-long-tokens", prompt=[504] * 2049),
        text("prompt-and-max-tokens-too-long", prompt=[504] * 2040, max_tokens=200),
        text("prompt-fills-context", prompt=[504] * 2048),
        text("prompt-nul", prompt="a\u0000b"),
        text("prompt-surrogate", prompt="a\ud800b"),
        without("bad/completions/no-prompt", COMPLETIONS, TEXT, "prompt"),
    ]


def messages() -> list[Shape]:
    """Invalid messages."""
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    return [
        chat("messages-empty", messages=[]),
        chat("messages-null", messages=None),
        chat("messages-text", messages="Hello"),
        chat("messages-list-of-text", messages=["Hello"]),
        chat("role-missing", messages=[{"content": "Hello"}]),
        chat("role-unknown", messages=[{"role": "wizard", "content": "Hello"}]),
        chat("content-missing", messages=[{"role": "user"}]),
        chat("content-number", messages=[{"role": "user", "content": 5}]),
        chat("content-part-unknown", messages=[{"role": "user", "content": [{"type": "smell", "smell": "rose"}]}]),
        chat("image-to-text-model", messages=[{"role": "user", "content": image}]),
        chat("too-long", messages=[{"role": "user", "content": "word " * 3000}]),
        chat("continue-and-generate", continue_final_message=True),
        chat("template-from-client", chat_template="{{ messages }}"),
        chat("template-kwargs-text", chat_template_kwargs="x"),
        chat("template-kwargs-template", chat_template_kwargs={"chat_template": "{{ messages }}"}),
        chat("template-kwargs-tokenize", chat_template_kwargs={"tokenize": True}),
        chat("surrogate", messages=[{"role": "user", "content": "a\ud800b"}]),
        without("bad/chat/no-messages", CHATS, CHAT, "messages"),
    ]


def streams() -> list[Shape]:
    """Invalid stream options."""
    return [
        text("stream-options-alone", stream_options={"include_usage": True}),
        chat("stream-options-alone", stream_options={"include_usage": True}),
        chat("stream-options-text", stream=True, stream_options="usage"),
        text("stream-text", stream="perhaps"),
        text("stream-beam", stream=True, use_beam_search=True),
        text("stream-too-long", stream=True, prompt=[504] * 2049),
        chat("stream-unknown-model", stream=True, model="nobody"),
        text("stream-interval-0", stream=True, stream_interval=0),
    ]


def structured() -> list[Shape]:
    """Invalid structured outputs."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no-such-type"}}}
    ref = {"type": "json_schema", "json_schema": {"name": "x", "schema": DEEP}}
    return [
        chat("regex-invalid", structured_outputs={"regex": "(["}),
        text("regex-invalid", structured_outputs={"regex": "*a"}),
        chat("schema-invalid", response_format=schema),
        chat("schema-dangling-ref", response_format=ref),
        chat("schema-missing", response_format={"type": "json_schema"}),
        chat("schema-not-json", structured_outputs={"json": "{not json"}),
        chat("grammar-invalid", structured_outputs={"grammar": "root := ???"}),
        chat("choice-empty", structured_outputs={"choice": []}),
        chat("two-structures", structured_outputs={"choice": ["a"], "regex": "a"}),
        chat("no-structure", structured_outputs={}),
        chat("response-format-unknown", response_format={"type": "yaml"}),
        chat("response-format-text", response_format="json"),
    ]


def tools() -> list[Shape]:
    """Invalid tools and tool choices."""
    nameless = {"type": "function", "function": {"description": "nothing"}}
    bad_schema = {"type": "function", "function": {"name": "f", "parameters": {"type": "no-such-type"}}}
    other = {"type": "function", "function": {"name": "other"}}
    return [
        chat("tool-choice-unknown-tool", tools=[WEATHER], tool_choice=other),
        chat("tool-choice-without-tools", tool_choice="auto"),
        chat("tool-choice-required-without-tools", tool_choice="required"),
        chat("tool-choice-required-empty-tools", tools=[], tool_choice="required"),
        chat("tool-choice-named-without-tools", tool_choice=other),
        chat("tool-choice-word", tools=[WEATHER], tool_choice="perhaps"),
        chat("tool-choice-object", tools=[WEATHER], tool_choice={"type": "function"}),
        chat("tool-nameless", tools=[nameless]),
        chat("tool-schema-invalid", tools=[bad_schema], tool_choice="required"),
        chat("tools-text", tools="weather"),
        chat("tools-type-unknown", tools=[{"type": "magic"}]),
    ]
