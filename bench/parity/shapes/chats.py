"""`/v1/chat/completions` without tools: messages in every form, templates, sampling, log-probabilities, streams."""

from typing import Any

from bench.parity.shape import Shape, both_ways, chat

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "You answer in one word."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]


def shapes() -> list[Shape]:
    """Every `/v1/chat/completions` request without tools that must succeed."""
    return [*messages(), *templates(), *sampling(), *logprobs(), *streams()]


def messages() -> list[Shape]:
    """Message forms."""
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}]
    return [
        *both_ways(chat("text", checks=("says_paris",))),
        chat("conversation", CONVERSATION),
        chat("content-parts", parts),
        chat("named-user", [{"role": "user", "name": "Ann", "content": "Hello."}]),
        chat("developer", [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello."}]),
        chat("empty-content", ""),
        chat("unicode", "Répète : 日本 😀"),
        chat("long", "word " * 600),
        chat(
            "tool-message",
            [
                {"role": "user", "content": "Weather in Paris?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
            ],
        ),
    ]


def templates() -> list[Shape]:
    """Chat template options."""
    prefill = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    return [
        chat("continue-final-message", prefill, continue_final_message=True, add_generation_prompt=False),
        chat("continue-echo", prefill, continue_final_message=True, add_generation_prompt=False, echo=True),
        chat("no-generation-prompt", add_generation_prompt=False),
        chat("template-kwargs", chat_template_kwargs={"enable_thinking": False}),
        chat("add-special-tokens", add_special_tokens=True, return_token_ids=True),
        chat("documents", documents=[{"title": "France", "text": "Its capital is Paris."}]),
        chat("echo", echo=True),
        chat("reasoning-effort", reasoning_effort="low"),
        chat("prompt-text", return_prompt_text=True, return_token_ids=True),
    ]


def sampling() -> list[Shape]:
    """Sampling parameters."""
    return [
        *both_ways(chat("n2", n=2, temperature=0.8, seed=7)),
        chat("seed", temperature=1.0, seed=99, max_tokens=16),
        chat("penalties", "Say ha ha ha.", presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.1),
        chat("logit-bias", logit_bias={"504": 100}, max_tokens=4),
        chat("bad-words", bad_words=["Paris", " Paris"]),
        *both_ways(chat("stop", "Count to ten.", stop=[",", "\n"], max_tokens=32)),
        chat("stop-included", "Count to ten.", stop=[",", "\n"], include_stop_str_in_output=True, max_tokens=32),
        chat("stop-token-ids", stop_token_ids=[30], max_tokens=24),
        chat("max-completion-tokens", max_tokens=None, max_completion_tokens=5),
        chat("max-both", max_tokens=9, max_completion_tokens=5),
        chat("max-tokens-default", max_tokens=None, stop="."),
        chat("min-tokens", min_tokens=14, max_tokens=16),
        chat("ignore-eos", ignore_eos=True, max_tokens=16),
        chat("eos", max_tokens=64, checks=("stops_by_itself",)),
        chat("allowed-token-ids", allowed_token_ids=[504, 314, 282], max_tokens=4),
        chat("top-k-top-p-min-p", temperature=0.9, top_k=20, top_p=0.9, min_p=0.05, seed=4),
    ]


def logprobs() -> list[Shape]:
    """Log-probabilities."""
    return [
        chat("logprobs", logprobs=True),
        *both_ways(chat("top-logprobs-5", logprobs=True, top_logprobs=5)),
        chat("logprobs-token-ids", logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True),
        chat("prompt-logprobs", prompt_logprobs=2, max_tokens=2),
        *both_ways(chat("return-token-ids", return_token_ids=True)),
    ]


def streams() -> list[Shape]:
    """Stream options."""
    continuous = {"include_usage": True, "continuous_usage_stats": True}
    return [
        chat("stream-usage", stream=True, stream_options={"include_usage": True}),
        chat("stream-continuous-usage", stream=True, stream_options=continuous),
        chat("stream-usage-n2", stream=True, stream_options=continuous, n=2, temperature=0.8, seed=7),
        chat("stream-max-1", stream=True, max_tokens=1),
        chat("stream-echo", stream=True, echo=True),
        chat("stream-interval", stream=True, stream_interval=4),
    ]
