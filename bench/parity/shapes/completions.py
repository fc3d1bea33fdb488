"""`/v1/completions`: prompts in every form, every sampling parameter, log-probabilities, echo, streams."""

from bench.parity.shape import Shape, both_ways, completion

FRANCE = [504, 3575, 282, 4649, 314]
"""Token ids ("The capital of France is" for SmolLM2; the text does not matter)."""


def shapes() -> list[Shape]:
    """Every `/v1/completions` request that must succeed."""
    return [*prompts(), *sampling(), *stops(), *logprobs(), *streams(), *extras()]


def prompts() -> list[Shape]:
    """Prompt forms."""
    return [
        *both_ways(completion("text")),
        *both_ways(completion("list-of-texts", ["The capital of France is", "One, two, three,"])),
        *both_ways(completion("token-ids", FRANCE)),
        *both_ways(completion("list-of-token-ids", [FRANCE, FRANCE[:3]])),
        completion("unicode", "Liberté, égalité, 😀 日本", max_tokens=16),
        completion("one-character", "A"),
        completion("long-prompt", "word " * 700),
        completion(
            "truncate", "one two three four five six seven eight", truncate_prompt_tokens=4, return_token_ids=True
        ),
        completion("no-special-tokens", add_special_tokens=False, return_token_ids=True),
    ]


def sampling() -> list[Shape]:
    """Sampling parameters. Requests with a temperature above 0 have a seed."""
    return [
        *both_ways(completion("n2", n=2, temperature=0.8, seed=7)),
        completion("n3-two-prompts", ["One, two,", "Red, green,"], n=3, temperature=0.8, seed=7),
        completion("seed", temperature=1.0, seed=1234, max_tokens=16),
        completion("seed-top-p", temperature=1.0, top_p=0.7, seed=5, max_tokens=16),
        completion("seed-top-k", temperature=1.0, top_k=5, seed=5, max_tokens=16),
        completion("seed-min-p", temperature=1.0, min_p=0.2, seed=5, max_tokens=16),
        completion("presence-penalty", "a b a b a b", presence_penalty=1.5, max_tokens=16),
        completion("frequency-penalty", "a b a b a b", frequency_penalty=1.5, max_tokens=16),
        completion("repetition-penalty", "a b a b a b", repetition_penalty=1.3, max_tokens=16),
        completion("logit-bias", logit_bias={"504": 100}, max_tokens=4),
        completion("bad-words", bad_words=["Paris", " Paris"], max_tokens=8),
        completion("allowed-token-ids", allowed_token_ids=[504, 314, 282], max_tokens=4, return_token_ids=True),
        completion("top-k-off", top_k=0),
        completion("top-k-minus-one", top_k=-1),
        completion("default-temperature", temperature=None, seed=3),
        completion("beam-search", use_beam_search=True, n=2, max_tokens=6),
    ]


def stops() -> list[Shape]:
    """Stop conditions."""
    return [
        *both_ways(completion("stop-string", "One, two, three, four,", stop=["six"], max_tokens=24)),
        *both_ways(
            completion(
                "stop-string-included",
                "One, two, three, four,",
                stop="six",
                include_stop_str_in_output=True,
                max_tokens=24,
            )
        ),
        completion("stop-list", "One, two, three, four,", stop=["nine", "seven"], max_tokens=24),
        *both_ways(completion("stop-token-ids", stop_token_ids=[28, 30], max_tokens=24, return_token_ids=True)),
        completion("max-tokens-1", max_tokens=1),
        completion("max-tokens-0", max_tokens=0),
        completion("max-tokens-0-echo", max_tokens=0, echo=True, logprobs=1),
        completion("max-tokens-default", max_tokens=None, stop="."),
        completion("min-tokens", "Q: 2+2? A: 4<|im_end|>", min_tokens=12, max_tokens=16),
        completion(
            "ignore-eos",
            "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nHi.",
            ignore_eos=True,
            max_tokens=12,
        ),
        completion("eos", "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nHi", max_tokens=48),
        completion(
            "keep-special-tokens",
            "<|im_start|>user\nSay hi.<|im_end|>\n",
            skip_special_tokens=False,
            max_tokens=12,
            ignore_eos=True,
        ),
    ]


def logprobs() -> list[Shape]:
    """Log-probabilities of sampled and prompt tokens, and echo."""
    return [
        completion("logprobs-0", logprobs=0),
        completion("logprobs-1", logprobs=1),
        *both_ways(completion("logprobs-5", logprobs=5)),
        completion("logprobs-seed", logprobs=2, temperature=0.9, seed=11),
        completion("logprobs-n2", logprobs=1, n=2, temperature=0.9, seed=11),
        completion("logprobs-token-ids", logprobs=2, return_tokens_as_token_ids=True),
        completion("prompt-logprobs-0", prompt_logprobs=0),
        completion("prompt-logprobs-5", prompt_logprobs=5, max_tokens=1),
        completion("prompt-logprobs-teacher", FRANCE, prompt_logprobs=3, max_tokens=1, return_token_ids=True),
        *both_ways(completion("echo", echo=True)),
        *both_ways(completion("echo-logprobs", echo=True, logprobs=2)),
        completion("echo-token-ids", FRANCE, echo=True, logprobs=1, return_token_ids=True),
        completion("logprob-token-ids", logprob_token_ids=[504, 314], max_tokens=3),
    ]


def streams() -> list[Shape]:
    """Stream options."""
    usage = completion("stream-usage", stream=True, stream_options={"include_usage": True})
    continuous = {"include_usage": True, "continuous_usage_stats": True}
    return [
        usage,
        completion("stream-continuous-usage", stream=True, stream_options=continuous),
        completion("stream-usage-n2", stream=True, stream_options=continuous, n=2, temperature=0.8, seed=2),
        completion("stream-token-ids", stream=True, return_token_ids=True),
        completion("stream-unicode", "😀 😀 😀", stream=True, max_tokens=16),
        completion("stream-interval", stream=True, stream_interval=3, max_tokens=12),
    ]


def extras() -> list[Shape]:
    """Fields that only vLLM has."""
    return [
        completion("return-token-ids", return_token_ids=True),
        completion("return-token-ids-batch", [FRANCE, FRANCE[:2]], return_token_ids=True, n=2, temperature=0.5, seed=1),
        completion("tokens-as-ids", return_tokens_as_token_ids=True),
        completion("request-id", request_id="mine-0001"),
        completion("priority", priority=0),
        completion("user", user="someone"),
        completion("cache-salt", cache_salt="salt"),
        completion("unknown-field", no_such_field=1),
        completion(
            "repetition-detection",
            "a a a a",
            max_tokens=24,
            repetition_detection={"max_pattern_size": 4, "min_count": 4},
        ),
        completion(
            "trl-rollout",
            [FRANCE, FRANCE[:3]],
            n=2,
            temperature=1.0,
            seed=9,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            repetition_penalty=1.0,
            logprobs=0,
            return_token_ids=True,
            return_tokens_as_token_ids=True,
        ),
    ]
