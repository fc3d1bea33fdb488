"""The model's settings: vLLM's arguments from model.json and the environment, the keys, limits of grammars."""

import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE, ENGINE_ARGS_VARIABLE
from tritonlive.wire.keys import split_keys

from .grammars.limits import GrammarLimits


@dataclass(frozen=True)
class Settings:
    """`engine_argv`: a command line as for `vllm serve`. The front end parses the same one."""

    engine_argv: list[str]
    control_key: str | None = field(repr=False)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Inference keys; if empty, inference needs none."""
    grammar_limits: GrammarLimits = field(default_factory=GrammarLimits)
    model_version: str = "1"
    """Triton's name for the model's version, a label of its metrics."""

    @classmethod
    def load(cls, version_folder: Path) -> "Settings":
        """Read model.json, then the environment. The environment wins: vLLM's parser takes an option's last value.

        Raises ValueError with the name of the file or variable that cannot be read.
        """
        path = version_folder / "model.json"
        try:
            arguments = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path.name}: {error}") from error
        if not isinstance(arguments, dict):
            raise ValueError(f"{path.name}: expected a JSON object of vLLM engine arguments")
        try:
            overrides = shlex.split(os.environ.get(ENGINE_ARGS_VARIABLE, ""))
        except ValueError as error:
            raise ValueError(f"{ENGINE_ARGS_VARIABLE}: {error}") from error
        return cls(
            to_argv(arguments) + overrides,
            os.environ.get(CONTROL_KEY_VARIABLE) or None,
            split_keys(os.environ.get(API_KEY_VARIABLE)),
            GrammarLimits.from_environment(),
            version_folder.name,
        )


def to_argv(arguments: dict[str, Any]) -> list[str]:
    """{"max_model_len": 2048, "enforce_eager": true} → ["--max-model-len", "2048", "--enforce-eager"]."""
    argv: list[str] = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            argv.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            argv += [f"--{option}", *(item if isinstance(item, str) else json.dumps(item) for item in value)]
        else:
            argv += [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
    return argv
