"""Server profiles of a parity run. Parsers and optional routes are start-up settings, so each needs its own server."""

from bench.parity.shape import Profile

COMMON = ("--max-model-len", "2048", "--enforce-eager", "--dtype", "float32")
"""Settings of every server. Eager mode starts in half the time, and compilation does not affect the translation.
In float32 a token does not depend on the other requests in its batch; see `compare.FLOAT_TOLERANCE`.
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

RUST_PROFILES: dict[Profile, tuple[str, ...]] = {
    "hermes": PROFILES["hermes"],
    "phi4_mini_json": ("--enable-auto-tool-choice", "--tool-call-parser", "phi4_mini_json"),
    "extras": ("--enable-scale-out", "--enable-tokenizer-info-endpoint"),
}
"""The Rust front end has no parsers `pythonic` and `granite`."""
