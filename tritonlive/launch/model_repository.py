"""Write a folder for `tritonserver --model-repository`: a model with vLLM's engine arguments in model.json."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritonlive.wire.tensor_names import MODEL

from .config import MODEL_REPOSITORY
from .errors import LaunchError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NUMBER = re.compile(r"-?\d+(\.\d+)?")


def write_model(repository: Path, name: str, arguments: dict[str, Any]) -> Path:
    """Write the model `name` into `repository`, which is made if it is missing; returns the model's folder.

    arguments: what model.json holds, vLLM's engine arguments by their names (`max_model_len`).
    Raises LaunchError if the name is not one for a folder, if the model is there already, or if it cannot be written.
    """
    if not NAME.fullmatch(name):
        raise LaunchError(f"--name {name}: only letters, digits, '.', '_' and '-', as Triton makes a URL of it")
    target = repository / name
    if target.exists():
        raise LaunchError(f"{target} exists already: choose another --name or directory, or remove it first")
    source = MODEL_REPOSITORY / MODEL
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        config = target / "config.pbtxt"
        config.write_text(config.read_text().replace(f'\nname: "{MODEL}"\n', f'\nname: "{name}"\n'))
        (target / "1" / "model.json").write_text(json.dumps(arguments, indent=2) + "\n")
    except OSError as error:
        raise LaunchError(f"{target} cannot be written: {error}") from error
    return target


def engine_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """`["--max-model-len", "2048", "--enforce-eager"]` as `{"max_model_len": 2048, "enforce_eager": True}`.

    The inverse of `tritonlive.backend.settings.to_argv`. Raises LaunchError naming the argument that has no such form.
    """
    options: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("-") and not NUMBER.fullmatch(word):
            option, equals, value = word.partition("=")
            options.append((option, [value] if equals else []))
        elif options:
            options[-1][1].append(word)
        else:
            raise LaunchError(f"{word!r} is not an option; a model is given as --model {word}")
    return dict(_argument(option, values) for option, values in options)


def _argument(option: str, values: list[str]) -> tuple[str, Any]:
    """Name and value of an option in model.json."""
    if not option.startswith("--"):
        raise LaunchError(f"{option}: model.json holds long names only; write vLLM's long option for it")
    name = option.removeprefix("--").replace("-", "_")
    if not values:
        return (name.removeprefix("no_"), False) if name.startswith("no_") else (name, True)
    return name, _value(values[0]) if len(values) == 1 else values


def _value(text: str) -> Any:
    """A number or a JSON object where `text` is one and is written back the same; else `text` itself."""
    if not text.startswith("{") and not NUMBER.fullmatch(text):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) or json.dumps(value) == text else text
