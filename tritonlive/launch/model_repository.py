"""Write a folder for `tritonserver --model-repository`: a model with vLLM's engine arguments in model.json, and those
that pass it requests without a batch dimension.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tritonlive.wire.tensor_names import MODEL, UNARY_MODEL, VLLM_MODEL

from .config import MODEL_REPOSITORY
from .errors import LaunchError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NUMBER = re.compile(r"-?\d+(\.\d+)?")


class ModelNames(NamedTuple):
    """Triton's names of a model with an engine, and of the two that pass it requests without a batch dimension."""

    engine: str = MODEL
    vllm: str = VLLM_MODEL
    """For clients of Triton's vllm_backend."""
    unary: str = UNARY_MODEL
    """For infer(): one answer to one call."""

    @classmethod
    def of(cls, engine: str, vllm: str | None = None) -> "ModelNames":
        """The names for a model called `engine`; the others begin with it, unless it is the default one."""
        if engine == MODEL:
            return cls(vllm=vllm or VLLM_MODEL)
        return cls(engine, vllm or f"{engine}_{VLLM_MODEL}", f"{engine}_unary")


def write_models(repository: Path, names: ModelNames, arguments: dict[str, Any]) -> Path:
    """Write the models `names` into `repository`, which is made if it is missing; returns the folder of the first.

    arguments: what model.json holds, vLLM's engine arguments by their names (`max_model_len`).
    Raises LaunchError if a name is not one for a folder, if a model is there already, or if it cannot be written.
    """
    for option, name in (("--name", names.engine), ("--vllm-name", names.vllm), ("--name", names.unary)):
        if not NAME.fullmatch(name):
            raise LaunchError(f"{option} {name}: only letters, digits, '.', '_' and '-', as Triton makes a URL of it")
        if (repository / name).exists():
            raise LaunchError(
                f"{repository / name} exists already: choose another {option} or directory, or remove it first"
            )
    if len(set(names)) < len(names):
        raise LaunchError(f"--vllm-name {names.vllm}: the models need different names")
    target = repository / names.engine
    try:
        for default, name in zip(ModelNames(), names, strict=True):
            folder = repository / name
            shutil.copytree(MODEL_REPOSITORY / default, folder, ignore=shutil.ignore_patterns("__pycache__"))
            config = folder / "config.pbtxt"
            text = config.read_text().replace(f'\nname: "{default}"\n', f'\nname: "{name}"\n')
            config.write_text(text.replace(f'string_value: "{MODEL}"', f'string_value: "{names.engine}"'))
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
