"""Request fields that vLLM 0.32 accepts and ignores: which of them are harmless, and what to use instead of the others.

vLLM's request models allow any field (vllm.entrypoints.serve.engine.protocol, `extra="allow"`), so a misspelt or
removed one changes nothing and says nothing (vllm#53975). No version of vLLM refuses them yet.
"""

from typing import Any

ACCOUNTING = "for OpenAI's accounting; the answer is the same"
CACHING = "a hint for a prompt cache; vLLM caches prefixes by itself"
CLAUDE = "for Anthropic's service; the answer is made from the messages as they are sent"

HARMLESS: dict[str, str] = {
    "background_options": ACCOUNTING,
    "betas": CLAUDE,
    "cache_control": CACHING,
    "context_management": CLAUDE,
    "diagnostics": CLAUDE,
    "fallback_credit_token": CLAUDE,
    "fallbacks": CLAUDE,
    "inference_geo": CLAUDE,
    "metadata": ACCOUNTING,
    "prediction": "makes OpenAI's answers faster, not different",
    "prompt_cache_key": CACHING,
    "prompt_cache_options": CACHING,
    "prompt_cache_retention": CACHING,
    "safety_identifier": ACCOUNTING,
    "service_tier": ACCOUNTING,
    "speed": CLAUDE,
    "store": ACCOUNTING,
    "stream_options": "of the Responses API: padding of events against eavesdroppers",
    "user": ACCOUNTING,
    "user_profile_id": ACCOUNTING,
}
"""Field: why an answer is the same without it. Fields that a request model knows need no entry."""

USE_STRUCTURED_OUTPUTS = "vLLM removed it; use structured_outputs or response_format"

REPLACED: dict[str, str] = {
    "access_programs": "it has no meaning here",
    "audio": "this server answers with text only",
    "best_of": "vLLM removed it; use n, and choose the best answer by its logprobs",
    "container": "this server runs no code for the model",
    "conversation": "this server keeps no conversations; send all messages in input",
    "do_sample": "use temperature; 0 is greedy",
    "early_stopping": "beam search always runs to its end",
    "enable_thinking": 'use chat_template_kwargs: {"enable_thinking": ...}',
    "extra_body": "its contents belong at the top level of the body; the OpenAI SDK puts them there",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "generation_kwargs": "send each of them at the top level of the body",
    "guided_choice": f'{USE_STRUCTURED_OUTPUTS}: {{"choice": [...]}}',
    "guided_decoding_backend": "use --structured-outputs-config of the server",
    "guided_grammar": f'{USE_STRUCTURED_OUTPUTS}: {{"grammar": ...}}',
    "guided_json": f'{USE_STRUCTURED_OUTPUTS}: {{"json": ...}}',
    "guided_regex": f'{USE_STRUCTURED_OUTPUTS}: {{"regex": ...}}',
    "guided_whitespace_pattern": "use --structured-outputs-config of the server",
    "image": "this server answers with text only",
    "mcp_servers": "this server calls no MCP servers",
    "modalities": "this server answers with text only",
    "moderation": "this server moderates nothing",
    "output_format": "use output_config: {format: ...}",
    "sampling_params": "send each of them at the top level of the body",
    "verbosity": "vLLM has no such control; ask for it in the prompt",
    "web_search_options": "this server searches nothing",
}
"""Field: what to use instead. Refused even if a request model knows it, as the batch route's knows `best_of`; a model
that honours one has it in HONOURED."""

HONOURED = frozenset({"sampling_params", "generation_kwargs"})
"""Fields of REPLACED that some request models know and honour."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "early_stopping": (False,),
    "mcp_servers": ([],),
    "modalities": (["text"],),
    "verbosity": ("medium",),
}
"""Values of REPLACED that ask for what the server does anyway. None is one of them for every field."""

SYNONYMS: tuple[tuple[str, ...], ...] = (
    # The first that a request model knows is suggested.
    (
        *("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens", "max_gen_tokens"),
        *("max_tokens_to_sample", "max_length", "num_predict", "n_predict"),
    ),
    ("stop", "stop_sequences", "stop_strings", "stop_words"),
    ("n", "num_return_sequences", "num_generations", "num_completions", "num_samples"),
    ("use_beam_search", "num_beams", "beam_width"),
    ("repetition_penalty", "repeat_penalty", "rep_pen"),
    ("ignore_eos", "ignore_eos_token"),
    ("seed", "random_seed"),
    ("min_tokens", "min_new_tokens", "min_length"),
    ("messages", "conversation_history"),
    ("instructions", "system", "system_prompt"),
    ("structured_outputs", "json_schema", "grammar", "regex", "guided_decoding", "format"),
)
"""Names that other servers and libraries give to the same thing."""
