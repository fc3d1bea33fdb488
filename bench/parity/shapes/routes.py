"""Routes other than completions: models, tokens, health, versions, rendering, and other APIs that vLLM mounts."""

from dataclasses import replace
from typing import Any

from bench.parity.shape import MODEL, Shape

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hello."}]
PROMPT = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 4}
FRANCE = [504, 3575, 282, 4649, 314]
CHAT = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 4}


def get(name: str, path: str, **fields: Any) -> Shape:
    """A GET request."""
    return Shape(f"routes/{name}", path, method="GET", **fields)


def post(name: str, path: str, **body: Any) -> Shape:
    """A POST request with a JSON body."""
    return Shape(f"routes/{name}", path, body)


def enabled(shape: Shape) -> Shape:
    """The same request to the server that has the optional routes."""
    return replace(shape, name=f"{shape.name}/enabled", profile="extras")


def shapes() -> list[Shape]:
    """Every request to another route."""
    optional = optional_routes()
    return [*reading(), *tokens(), *other_apis(), *optional, *map(enabled, optional)]


def reading() -> list[Shape]:
    """GET requests."""
    return [
        get("models", "/v1/models"),
        get("version", "/version"),
        get("health", "/health"),
        get("ping", "/ping"),
        get("load", "/load"),
        get("metrics", "/metrics", only="status"),
        get("openapi", "/openapi.json", only="status"),
        get("docs", "/docs", only="status"),
    ]


def tokens() -> list[Shape]:
    """Tokenizing, detokenizing and rendering."""
    return [
        post("tokenize-prompt", "/tokenize", model=MODEL, prompt="Liberté 😀"),
        post("tokenize-strings", "/tokenize", model=MODEL, prompt="One two", return_token_strs=True),
        post("tokenize-chat", "/tokenize", model=MODEL, messages=MESSAGES),
        post("tokenize-chat-open", "/tokenize", model=MODEL, messages=MESSAGES, add_generation_prompt=False),
        post("detokenize", "/detokenize", model=MODEL, tokens=[504, 3575, 282]),
        post("detokenize-empty", "/detokenize", model=MODEL, tokens=[]),
        post("detokenize-out-of-vocabulary", "/detokenize", model=MODEL, tokens=[10**7]),
    ]


def optional_routes() -> list[Shape]:
    """Routes that a start-up setting enables, and their answers while disabled."""
    greedy = {"max_tokens": 4, "temperature": 0}
    return [
        get("tokenizer-info", "/tokenizer_info"),
        post("render-completion", "/v1/completions/render", **PROMPT),
        post("render-chat", "/v1/chat/completions/render", **CHAT),
        post("render-bad", "/v1/chat/completions/render", **{**CHAT, "messages": []}),
        post("generate-tokens", "/inference/v1/generate", model=MODEL, token_ids=FRANCE, sampling_params=greedy),
        post(
            "generate-tokens-logprobs",
            "/inference/v1/generate",
            model=MODEL,
            token_ids=FRANCE,
            sampling_params={**greedy, "logprobs": 2, "prompt_logprobs": 1},
        ),
        post(
            "generate-tokens-stream",
            "/inference/v1/generate",
            model=MODEL,
            token_ids=FRANCE,
            stream=True,
            sampling_params=greedy,
        ),
    ]


def other_apis() -> list[Shape]:
    """Other APIs over the same engine."""
    responses = {"model": MODEL, "input": "Hello.", "temperature": 0, "max_output_tokens": 6}
    anthropic = {"model": MODEL, "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    batch = {"model": MODEL, "messages": [MESSAGES, MESSAGES], "max_tokens": 4, "temperature": 0}
    return [
        post("responses", "/v1/responses", **responses),
        post("responses-stream", "/v1/responses", stream=True, **responses),
        post("responses-no-store", "/v1/responses", store=False, **responses),
        post("messages", "/v1/messages", **anthropic),
        post("messages-stream", "/v1/messages", stream=True, **anthropic),
        post("messages-count-tokens", "/v1/messages/count_tokens", model=MODEL, messages=MESSAGES),
        post("chat-batch", "/v1/chat/completions/batch", **batch),
        post("invocations", "/invocations", **PROMPT),
        post(
            "generative-scoring",
            "/generative_scoring",
            model=MODEL,
            query="Is it?",
            items=["yes", "no"],
            label_token_ids=[504, 314],
        ),
        post("embeddings", "/v1/embeddings", model=MODEL, input="Hello."),
    ]
