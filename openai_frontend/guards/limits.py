"""Sizes and times that a client may not exceed. Each is an option of `tritonlive serve` and `tritonlive frontend`."""

import json
from dataclasses import asdict, dataclass

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class Limits:
    """The defaults are far above what a client needs, and far below what harms the other clients."""

    max_body_size: int = 32 * MIB
    """Bytes of a request's body. The files of an adapter have a limit of their own (tritonlive/wire/limits.py)."""
    max_header_size: int = 64 * KIB
    """Bytes of a request's first line and headers together."""
    receive_timeout_s: float = 60.0
    """Time for a request's headers, and for each next piece of its body."""
    max_n: int = 128
    """Answers to one prompt."""
    max_prompts: int = 1024
    """Prompts in one request."""
    max_generations: int = 4096
    """Answers to all prompts of one request."""
    max_queued: int = 16384
    """Generations of one front-end process that wait or run."""
    max_unread_tokens: int = 2**18
    """Tokens of the answers to one prompt, logprob candidates included, that a stream's client has not read yet."""
    drain_s: int = 10
    """Time for open requests at exit. Streams that are still open one second before its end get an error event."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Raises ValueError or TypeError."""
        return cls(**json.loads(text))


DEFAULTS = Limits()

# vLLM's own limits give way, so that --max-n and --max-prompts decide.
UNLIMITED = dict.fromkeys(("VLLM_MAX_N_SEQUENCES", "VLLM_MAX_COMPLETION_PROMPTS"), str(2**31 - 1))
"""Environment of the front end."""
