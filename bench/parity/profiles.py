"""The servers a parity run needs: what only a start-up setting can choose (parsers, optional routes)."""

from bench.parity.shape import Profile

COMMON = ("--max-model-len", "2048", "--enforce-eager", "--dtype", "float32")
"""Settings of every server. Eager: starts in half the time, and compiled code is vLLM's affair, not the translation's.
In float32 a token does not depend on which requests happened to share its batch; see `compare.FLOAT_TOLERANCE`.
"""

PROFILES: dict[Profile, tuple[str, ...]] = {
    "hermes": (
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        "--enable-prompt-tokens-details",
    ),
    "pythonic": ("--enable-auto-tool-choice", "--tool-call-parser", "pythonic"),
    "extras": (
        *("--reasoning-parser", "granite", "--structured-outputs-config", '{"enable_in_reasoning": true}'),
        *("--enable-scale-out", "--enable-tokenizer-info-endpoint"),
    ),
}


def server_args(profile: Profile) -> tuple[str, ...]:
    """The vLLM command line of the server, beside model, name and address."""
    return (*COMMON, *PROFILES[profile])
