"""Sizes and bounds that more than one process must agree on."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MAX_NAME = 200
"""Characters of a version's, an update's or a lease holder's name, at most."""

MAX_REASON = 2000
"""Characters of a reason that a replica keeps and repeats in its answers; the rest is cut off."""

MAX_PATH = 4096
"""Characters of a path, at most; Linux's own bound."""

MAX_BATCH = 64
"""Generations in one Triton request, at most; well below max_batch_size in model_repository/llm/config.pbtxt."""

MAX_ADAPTER_BYTES = 2**30
"""Bytes of one adapter_model.safetensors, at most. The front end stops reading there, the model has the last word."""

MAX_SCORE_PROMPTS = 256
"""Prompts in one `score`, at most."""

MIN_LEASE_S, MAX_LEASE_S = 1.0, 3600.0
"""Seconds that a trainer may ask a lease for."""

MIN_INT64, MAX_INT64, MAX_INT32 = -(2**63), 2**63 - 1, 2**31 - 1

SAMPLING_RANGES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "max_tokens": (1, MAX_INT32),
        "min_tokens": (0, MAX_INT32),
        "seed": (MIN_INT64, MAX_INT64),
        "top_k": (-1, MAX_INT32),
        "stream_interval": (1, MAX_INT32),
        "thinking_token_budget": (-1, MAX_INT32),
        "routed_experts_prompt_start": (0, MAX_INT32),
    }
)
"""Smallest and largest value of integer sampling parameters, where vLLM has no bound that protects its engine."""

SAMPLING_LENGTHS: Mapping[str, int] = MappingProxyType(
    {
        "stop": 128,
        "stop_token_ids": 1024,
        "bad_words": 256,
        "logit_bias": 1024,
        "allowed_token_ids": 2**18,
        "extra_args": 64,
    }
)
"""Entries of sampling parameters that are lists or objects, at most. Most are looked through for every token."""

MAX_STRING_CHARACTERS = 4096
"""Characters of one stop string or bad word, at most."""

MAX_SAMPLING_PARAMETERS_BYTES = 2**20
"""Bytes of one request's sampling parameters, at most."""

MAX_N = 1024
"""Sequences of one request, at most, unless vLLM's VLLM_MAX_N_SEQUENCES is set: vLLM's own limit is 16,384, and such
a request keeps an engine busy for minutes."""

MAX_NESTING = 64
"""Levels of objects and lists in sampling parameters, at most."""


@dataclass(frozen=True)
class GrammarDefaults:
    """Limits of a grammar (structured outputs) unless the operator sets others."""

    max_bytes: int = 256 * 1024
    """Bytes of a schema, regex or grammar."""
    max_values: int = 10_000
    """Values in a schema's objects and lists, at all depths; choices of a list."""
    timeout_s: float = 5.0
    """Seconds that the compilation of a new grammar may take."""
    memory_mib: int = 1024
    """Memory that it may take."""


GRAMMAR_DEFAULTS = GrammarDefaults()
