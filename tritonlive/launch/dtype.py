"""The dtype that a model is served in when the caller names none."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from . import processor
from .config import StackConfig

FLOAT32 = ("--dtype", "float32")
NOTE = "float32 (this processor emulates bfloat16; --dtype bfloat16 keeps it)"
"""Line of the ready block: the choice, its reason, and the option that overrides it."""


def choose(config: StackConfig) -> tuple[StackConfig, str | None]:
    """`config` with float32 where bfloat16 is emulated, and a note for the user; None where nothing was chosen.

    Quantised models keep their dtype: most of vLLM's quantisation methods refuse float32.
    """
    if not processor.emulates_bfloat16() or is_named(config.extra_args) or _is_quantised(config):
        return config, None
    return replace(config, extra_args=(*FLOAT32, *config.extra_args)), NOTE


def is_named(arguments: Sequence[str]) -> bool:
    """Whether vLLM's arguments, or the YAML file that its `--config` names, name a dtype."""
    if _values(arguments, "--dtype"):
        return True
    files = (Path(name) for name in _values(arguments, "--config"))
    return any(re.search(r"^dtype\s*:", file.read_text(), re.MULTILINE) for file in files if file.is_file())


def _is_quantised(config: StackConfig) -> bool:
    """Whether the arguments or the checkpoint's config.json name a quantisation; False for a hub id."""
    if _values(config.extra_args, "--quantization", "-q"):
        return True
    path = Path(config.model) / "config.json"
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError):
        return False  # vLLM reports what is wrong with it
    return isinstance(description, dict) and any(
        isinstance(part, dict) and part.get(key)
        for part in (description, description.get("text_config"))
        for key in ("quantization_config", "compression_config")
    )


def _values(arguments: Sequence[str], *options: str) -> list[str]:
    """The values given to any of the options, as `--option value` or `--option=value`."""
    found = []
    for argument, following in pairwise((*arguments, "")):
        name, equals, value = argument.partition("=")
        if name in options:
            found.append(value if equals else following)
    return found
